package pool_test

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// writeVolume activates a volume and writes the text to its first block.
func writeVolume(t *testing.T, p *pool.Pool, id thin.ID, text string) {
	t.Helper()
	vol, err := p.Activate(t.Context(), id, volumeBytes, false)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(vol.Path, bytes.Repeat([]byte(text), 64<<10/len(text)), 0o600))
	require.NoError(t, p.Flush(t.Context(), id))
}

func begins(t *testing.T, path string, n int) string {
	t.Helper()
	d, err := blockdev.OpenDirect(path)
	require.NoError(t, err)
	defer d.Close()
	b := make([]byte, n)
	_, err = d.ReadAt(b, 0)
	require.NoError(t, err)
	return string(b)
}

// TestPoolsThatExchangeNumbers: an administrator deactivates all volume groups and activates them
// again while no volume is active. Both pools have a volume 1.
func TestPoolsThatExchangeNumbers(t *testing.T) {
	control, spec := newLVMSpec(t)
	otherSpec := spec
	otherSpec.ID, otherSpec.Name, otherSpec.PVUUID = "other", "lvm-other", pool.NewPVUUID()
	otherSpec.Device = os.Getenv("THINSNAP_DISK1")
	ctx := t.Context()
	open := func(spec pool.LVMSpec, text string) (*pool.Pool, pool.LVMSpec) {
		made, err := spec.Create(ctx, false)
		require.NoError(t, err)
		p, err := made.Open(ctx, control, false)
		require.NoError(t, err)
		require.NoError(t, p.CreateThin(ctx, 1))
		writeVolume(t, p, 1, text)
		require.NoError(t, p.Deactivate(ctx, 1))
		return p, made
	}
	ours, made := open(spec, "ours....")
	theirs, otherMade := open(otherSpec, "theirs..")
	number := func(p *pool.Pool) string {
		dev, err := control.Info(p.Name())
		require.NoError(t, err)
		return dev.Number()
	}
	before, theirsBefore := number(ours), number(theirs)
	devices := backing(t, ours)
	command(t, "vgchange", "-an", spec.Name, otherSpec.Name)
	command(t, "vgchange", "-ay", otherSpec.Name)
	command(t, "vgchange", "-ay", spec.Name)
	require.Equal(t, []string{theirsBefore, before}, []string{number(ours), number(theirs)}, "they have exchanged numbers")

	vol, err := ours.Activate(ctx, 1, volumeBytes, false)
	require.NoError(t, err)
	require.Equal(t, "ours....", begins(t, vol.Path, 8))
	mapped, err := ours.MappedDevices(ctx)
	require.NoError(t, err)
	require.Len(t, mapped, 1)
	require.True(t, mapped[0].OnPool)
	require.NoError(t, ours.Discard(ctx, 1, nil))
	require.NoError(t, ours.Deactivate(ctx, 1))
	vol, err = theirs.Activate(ctx, 1, volumeBytes, false)
	require.NoError(t, err)
	require.Equal(t, "theirs..", begins(t, vol.Path, 8))
	require.NoError(t, theirs.Deactivate(ctx, 1))

	// Their data devices have exchanged numbers, too.
	require.NotEqual(t, devices.DataDevice, backing(t, ours).DataDevice)
	require.Equal(t, devices.DataDisks, backing(t, ours).DataDisks)
	sizes, err := ours.Status(ctx)
	require.NoError(t, err)
	require.NoError(t, ours.Extend(ctx, sizes.Data.Total+1<<30, sizes.Metadata.Total+8<<20))
	volumes, err := ours.Volumes(ctx, 1, 8)
	require.NoError(t, err)
	require.Equal(t, map[thin.ID]bool{1: true}, volumes)
	require.NoError(t, ours.CreateThin(ctx, 2))
	volumes, err = theirs.Volumes(ctx, 1, 8)
	require.NoError(t, err)
	require.Equal(t, map[thin.ID]bool{1: true}, volumes)

	require.NoError(t, ours.Close(ctx))
	require.NoError(t, made.Remove(ctx, nil))
	require.NoError(t, theirs.Close(ctx))
	require.NoError(t, otherMade.Remove(ctx, nil))
}

// TestNodeOfAnotherDevice: nothing removed the node of a deactivated volume, and another device
// took its number before the volume was active again.
func TestNodeOfAnotherDevice(t *testing.T) {
	control, spec := newSpec(t)
	ctx := t.Context()
	p, err := spec.Open(ctx, control, false)
	require.NoError(t, err)
	require.NoError(t, p.CreateThin(ctx, 1))
	writeVolume(t, p, 1, "ours....")
	require.NoError(t, p.CreateThin(ctx, 2))
	vol, err := p.Activate(ctx, 2, volumeBytes, false)
	require.NoError(t, err)
	require.NoError(t, os.Remove(vol.Path))
	other, err := control.Info(p.VolumeName(1))
	require.NoError(t, err)
	node, err := blockdev.Path(other.Number())
	require.NoError(t, err)
	require.NoError(t, os.Symlink(node, vol.Path))

	require.ErrorIs(t, p.Discard(ctx, 2, nil), pool.ErrWrongDevice)
	require.ErrorIs(t, p.Flush(ctx, 2), pool.ErrWrongDevice)
	require.Equal(t, "ours....", begins(t, p.VolumePath(1), 8))
	_, err = p.Lookup(ctx, 2)
	require.NoError(t, err, "repairs the node")
	require.NoError(t, p.Flush(ctx, 2))
	require.NoError(t, p.Discard(ctx, 2, nil))
	require.Equal(t, "ours....", begins(t, p.VolumePath(1), 8))

	// A foreign device with the volume's name.
	require.NoError(t, p.Deactivate(ctx, 2))
	_, err = control.Activate(p.VolumeName(2), "foreign", []devmapper.Target{{Length: 8, Type: "zero"}}, false)
	require.NoError(t, err)
	require.ErrorIs(t, p.Suspend(ctx, 2), devmapper.ErrNotFound)
	require.ErrorIs(t, p.Resume(2), devmapper.ErrNotFound)
	_, err = p.Mapped(ctx, 2)
	require.ErrorIs(t, err, devmapper.ErrNotFound)
	require.NoError(t, control.Deactivate(p.VolumeName(2)))
	require.NoError(t, p.Close(ctx))
}

// TestDiscardOfOddBlocks: the pool's blocks do not end at multiples of 128 MiB.
func TestDiscardOfOddBlocks(t *testing.T) {
	for _, blockBytes := range []uint64{192 << 10, 256 << 20} {
		control, spec := newSpec(t)
		spec.BlockBytes = blockBytes
		ctx := t.Context()
		p, err := spec.Open(ctx, control, false)
		require.NoError(t, err)
		require.NoError(t, p.CreateThin(ctx, 1))
		vol, err := p.Activate(ctx, 1, 512<<20, false)
		require.NoError(t, err)
		f, err := os.OpenFile(vol.Path, os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteAt(make([]byte, 4096), 128<<20)
		require.NoError(t, errors.Join(err, f.Sync(), f.Close()))
		mapped, err := p.Mapped(ctx, 1)
		require.NoError(t, err)
		require.Equal(t, blockBytes, mapped)
		require.NoError(t, p.Discard(ctx, 1, nil))
		mapped, err = p.Mapped(ctx, 1)
		require.NoError(t, err)
		require.Zero(t, mapped, "with blocks of %d bytes", blockBytes)
		require.NoError(t, p.Close(ctx))
	}
}
