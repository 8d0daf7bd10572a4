package pool_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/program"
)

// groupImage returns the first bytes of a disk with a volume group of the given name.
func groupImage(t *testing.T, name string) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "guest")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, volumeBytes))
	loop, err := blockdev.LoopAttach(file, blockdev.LoopOptions{})
	require.NoError(t, err)
	command(t, "vgcreate", "--yes", name, loop.Path)
	require.NoError(t, blockdev.Flush(loop.Path))
	image := head(t, loop.Path)
	command(t, "vgremove", "--yes", name)
	command(t, "pvremove", "--yes", loop.Path)
	require.NoError(t, loop.Close())
	return image
}

// TestVolumeGroupOfAGuest: a virtual machine writes LVM's label, and a volume group with the pool's
// name, to its disk, which is a volume. No LVM program that thinsnap runs opens a volume: a
// suspended one would block it, and Commit would see an open volume. Nor does a program wait for a
// foreign device that was left suspended.
func TestVolumeGroupOfAGuest(t *testing.T) {
	control, spec := newLVMSpec(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	image := groupImage(t, spec.Name)
	made, err := spec.Create(ctx, false)
	require.NoError(t, err)
	p, err := made.Open(ctx, control, false)
	require.NoError(t, err)
	require.NoError(t, p.CreateThin(ctx, 1))
	vol, err := p.Activate(ctx, 1, volumeBytes, false)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(vol.Path, image, 0o600))
	require.NoError(t, p.Flush(ctx, 1))
	require.Contains(t, command(t, "vgs"), "is used by VGs", "LVM sees the guest's group")
	require.NotContains(t, command(t, "vgs", "--config", `devices{global_filter=["r|^/dev/mapper/lvm-test-snap-|"]}`),
		"is used by VGs", "docs/pools.md")
	// A guest's disk may be attached by these devices.
	linear := []devmapper.Target{{Length: volumeBytes / devmapper.SectorBytes, Type: "linear", Params: vol.Device.Number() + " 0"}}
	_, err = control.Activate("guest", "", linear, false)
	require.NoError(t, err)
	loop, err := blockdev.LoopAttach(mustEval(t, vol.Path), blockdev.LoopOptions{ReadOnly: true})
	require.NoError(t, err)
	require.NoError(t, p.Suspend(ctx, 1))
	disk, err := os.ReadFile(filepath.Join("/sys/class/block", filepath.Base(os.Getenv("THINSNAP_DISK1")), "dev"))
	require.NoError(t, err)
	linear[0].Params = strings.TrimSpace(string(disk)) + " 0"
	_, err = control.Activate("others", "", linear, false)
	require.NoError(t, err)
	_, err = control.Suspend("others", devmapper.SuspendOptions{})
	require.NoError(t, err)
	resume := func() {
		_ = p.Resume(1)
		_, _ = control.Resume("others")
	}
	// A program that waits for a suspended device cannot be killed.
	defer context.AfterFunc(ctx, resume)()

	before, err := p.Status(ctx)
	require.NoError(t, err)
	require.NoError(t, p.Extend(ctx, before.Data.Total+1<<30, before.Metadata.Total+8<<20))
	_, _, err = p.Largest(ctx)
	require.NoError(t, err)
	steps, err := made.Plan(ctx, false)
	require.NoError(t, err)
	require.Empty(t, steps)

	// As if LVM was killed while it had the pool suspended.
	_, err = control.Suspend(p.Name(), devmapper.SuspendOptions{NoFlush: true})
	require.NoError(t, err)
	_, err = made.Open(ctx, control, true)
	require.NoError(t, err)
	dev, err := control.Info(p.Name())
	require.NoError(t, err)
	require.False(t, dev.Suspended)
	require.NoError(t, ctx.Err())
	resume()
	require.NoError(t, loop.Close())
	// udevd may have them open.
	for _, name := range []string{"guest", "others"} {
		require.Eventually(t, func() bool { return control.Deactivate(name) == nil }, time.Minute, 20*time.Millisecond)
	}
	require.Eventually(t, func() bool { return p.Close(ctx) == nil }, time.Minute, 20*time.Millisecond)
	require.NoError(t, made.Remove(ctx, nil))
}

func mustEval(t *testing.T, path string) string {
	t.Helper()
	resolved, err := filepath.EvalSymlinks(path)
	require.NoError(t, err)
	return resolved
}

// TestVolumeGroupOfTheSameName: another disk of the host has a group with the pool's name.
func TestVolumeGroupOfTheSameName(t *testing.T) {
	skipIfShort(t)
	control, spec := newLVMSpec(t)
	ctx := t.Context()
	image := groupImage(t, spec.Name)
	made, err := spec.Create(ctx, false)
	require.NoError(t, err)
	p, err := made.Open(ctx, control, false)
	require.NoError(t, err)
	other := os.Getenv("THINSNAP_DISK1")
	require.NoError(t, os.WriteFile(other, image, 0))
	defer func() {
		config := `devices{filter=["r|` + spec.Device + `|"]}`
		command(t, "vgremove", "--yes", "--config", config, spec.Name)
		command(t, "pvremove", "--yes", "--config", config, other)
	}()

	before, err := p.Status(ctx)
	require.NoError(t, err)
	require.NoError(t, p.Extend(ctx, before.Data.Total+1<<30, before.Metadata.Total+8<<20))
	_, _, err = p.Largest(ctx)
	require.NoError(t, err)
	require.NoError(t, p.Close(ctx))
	p, err = made.Open(ctx, control, false)
	require.NoError(t, err)
	require.NoError(t, p.Close(ctx))
	require.NoError(t, made.Remove(ctx, nil))

	// A new pool does not take that name.
	_, err = spec.Create(ctx, false)
	require.ErrorIs(t, err, pool.ErrGroupTaken)
}

// TestRenamedVolumeGroup: an administrator renames the group of an active pool.
func TestRenamedVolumeGroup(t *testing.T) {
	skipIfShort(t)
	control, spec := newLVMSpec(t)
	ctx := t.Context()
	made, err := spec.Create(ctx, false)
	require.NoError(t, err)
	p, err := made.Open(ctx, control, false)
	require.NoError(t, err)
	command(t, "vgrename", spec.Name, "lvm-renamed")
	require.Equal(t, "lvm--renamed-pool", p.Name())
	before, err := p.Status(ctx)
	require.NoError(t, err)
	require.NoError(t, p.Extend(ctx, before.Data.Total+1<<30, 0))
	require.NoError(t, p.Close(ctx))
	p, err = made.Open(ctx, control, false)
	require.NoError(t, err)
	require.NoError(t, p.Close(ctx))
	require.ErrorIs(t, made.Remove(ctx, nil), pool.ErrWrongPool)
	command(t, "vgrename", "lvm-renamed", spec.Name)
	require.NoError(t, made.Remove(ctx, nil))
}

// TestFreeSpaceIsCached: each LVM query opens every disk of the host, so it is not repeated each second.
func TestFreeSpaceIsCached(t *testing.T) {
	skipIfShort(t)
	control, spec := newLVMSpec(t)
	ctx := t.Context()
	made, err := spec.Create(ctx, false)
	require.NoError(t, err)
	p, err := made.Open(ctx, control, false)
	require.NoError(t, err)
	first, _, err := p.Largest(ctx)
	require.NoError(t, err)
	again, _, err := p.Largest(program.WithDirectories(ctx, t.TempDir()))
	require.NoError(t, err, "runs no program")
	require.Equal(t, first, again)
	before, err := p.Status(ctx)
	require.NoError(t, err)
	require.NoError(t, p.Extend(ctx, before.Data.Total+1<<30, 0))
	again, _, err = p.Largest(ctx)
	require.NoError(t, err)
	require.Equal(t, first, again, "the free space shrinks by the extension")

	// Another program takes the free space after it was read.
	command(t, "lvcreate", "--yes", "--name", "other", "--extents", "100%FREE", spec.Name)
	require.ErrorContains(t, p.Extend(ctx, first, 0), "lvextend")
	again, _, err = p.Largest(ctx)
	require.NoError(t, err)
	require.Equal(t, before.Data.Total+1<<30, again)
	command(t, "lvremove", "--yes", spec.Name+"/other")
	require.NoError(t, p.Extend(ctx, first, 0))
	require.NoError(t, p.Close(ctx))
	require.NoError(t, made.Remove(ctx, nil))
}
