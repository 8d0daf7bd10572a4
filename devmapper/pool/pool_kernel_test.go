package pool_test

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

const volumeBytes = 64 << 20

// newSpec describes a loop pool in a new directory, and creates its files.
func newSpec(t *testing.T) (*devmapper.Control, pool.LoopSpec) {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	dir := t.TempDir()
	spec := pool.LoopSpec{
		ID:           rand.Text(),
		Name:         "pooltest",
		BlockBytes:   64 << 10,
		DataFile:     filepath.Join(dir, "pool", "data"),
		MetadataFile: filepath.Join(dir, "pool", "metadata"),
	}
	require.NoError(t, spec.CreateFiles(t.Context(), 1<<30, 8<<20))
	control, err := devmapper.Open()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, control.Close()) })
	return control, spec
}

func backing(t *testing.T, p *pool.Pool) pool.Backing {
	t.Helper()
	b, err := p.Backing()
	require.NoError(t, err)
	return b
}

func TestPoolIsAttached(t *testing.T) {
	control, spec := newSpec(t)
	ctx := t.Context()
	_, err := spec.OpenLoaded(control)
	require.ErrorIs(t, err, devmapper.ErrNotFound)
	first, err := spec.Open(ctx, control, false)
	require.NoError(t, err)
	require.NoError(t, first.CreateThin(ctx, 1))

	second, err := spec.Open(ctx, control, true)
	require.NoError(t, err)
	require.Equal(t, backing(t, first), backing(t, second))
	vol, err := second.Activate(ctx, 1, volumeBytes, false)
	require.NoError(t, err)
	require.FileExists(t, vol.Path)
	require.ErrorIs(t, second.Delete(ctx, 1), thin.ErrBusy)

	require.NoError(t, second.Close(ctx))
	third, err := spec.Open(ctx, control, true)
	require.NoError(t, err)
	require.ErrorIs(t, third.CreateThin(ctx, 1), thin.ErrExists)
	require.NoError(t, third.Close(ctx))
	require.NoError(t, third.Close(ctx), "closing twice does no harm")
}

// TestPoolWithANewNumber deactivates the pool and activates it with another device number: an open
// Pool finds it by its UUID.
func TestPoolWithANewNumber(t *testing.T) {
	control, spec := newSpec(t)
	ctx := t.Context()
	p, err := spec.Open(ctx, control, false)
	require.NoError(t, err)
	require.NoError(t, p.CreateThin(ctx, 1))
	before, err := control.Info(p.Name())
	require.NoError(t, err)
	require.NoError(t, p.Close(ctx))
	_, err = p.Activate(ctx, 1, volumeBytes, false)
	require.ErrorIs(t, err, pool.ErrNotActive)

	// filler takes the pool's number.
	filler, err := control.Create("pooltest-filler", "")
	require.NoError(t, err)
	require.Equal(t, before.Number(), filler.Number())
	again, err := spec.Open(ctx, control, true)
	require.NoError(t, err)
	after, err := control.Info(p.Name())
	require.NoError(t, err)
	require.NotEqual(t, before.Number(), after.Number())

	_, err = p.Activate(ctx, 1, volumeBytes, false)
	require.NoError(t, err)
	require.Equal(t, backing(t, again), backing(t, p))
	require.NoError(t, p.Close(ctx))
	_, err = control.Remove("pooltest-filler", devmapper.RemoveOptions{})
	require.NoError(t, err)
}

// TestActivateInASuspendedPool suspends the pool from outside, as LVM does: an activation waits for
// the resume. If its context ends first, it leaves nothing behind.
func TestActivateInASuspendedPool(t *testing.T) {
	control, spec := newSpec(t)
	ctx := t.Context()
	p, err := spec.Open(ctx, control, false)
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Close(ctx)) }()
	require.NoError(t, p.CreateThin(ctx, 1))
	_, err = control.Suspend(spec.Name, devmapper.SuspendOptions{NoFlush: true, SkipLockFS: true})
	require.NoError(t, err)

	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_, err = p.Activate(short, 1, volumeBytes, false)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = p.Lookup(ctx, 1)
	require.ErrorIs(t, err, devmapper.ErrNotFound)

	activated := make(chan error, 1)
	go func() {
		_, err := p.Activate(ctx, 1, volumeBytes, false)
		activated <- err
	}()
	time.Sleep(1500 * time.Millisecond) // the activation must have tried by then
	_, err = control.Resume(spec.Name)
	require.NoError(t, err)
	require.NoError(t, <-activated)
}

func TestOtherDevicesAreNotTaken(t *testing.T) {
	control, spec := newSpec(t)
	ctx := t.Context()
	p, err := spec.Open(ctx, control, false)
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Close(ctx)) }()

	other := spec
	other.ID = rand.Text()
	_, err = other.Open(ctx, control, false)
	require.ErrorIs(t, err, pool.ErrNameTaken)
	other = spec
	other.BlockBytes *= 2
	_, err = other.Open(ctx, control, true)
	require.ErrorIs(t, err, pool.ErrWrongPool)
	other = spec
	other.DataFile += "-other"
	require.NoError(t, other.CreateFiles(t.Context(), 1<<30, 8<<20))
	_, err = other.Open(ctx, control, true)
	require.ErrorIs(t, err, pool.ErrWrongPool)

	// A foreign device with a volume's name is neither used nor removed.
	_, err = control.Create(p.VolumeName(5), "foreign")
	require.NoError(t, err)
	_, err = p.Lookup(ctx, 5)
	require.ErrorIs(t, err, pool.ErrNameTaken)
	require.NoError(t, p.CreateThin(ctx, 5))
	_, err = p.Activate(ctx, 5, volumeBytes, false)
	require.ErrorIs(t, err, pool.ErrNameTaken)
	require.NoError(t, p.Deactivate(ctx, 5), "not active")
	require.NoError(t, p.Delete(ctx, 5))
	dev, err := control.Info(p.VolumeName(5))
	require.NoError(t, err)
	require.Equal(t, "foreign", dev.UUID)
	_, err = control.Remove(p.VolumeName(5), devmapper.RemoveOptions{})
	require.NoError(t, err)
}

func TestMetadataWithoutPoolIsRefused(t *testing.T) {
	control, spec := newSpec(t)
	_, err := spec.Open(t.Context(), control, true)
	require.ErrorIs(t, err, pool.ErrWrongPool)
	require.NoError(t, os.Remove(spec.MetadataFile))
	_, err = spec.Open(t.Context(), control, true)
	require.ErrorIs(t, err, pool.ErrWrongPool)
	require.ErrorContains(t, err, "missing")
}

func TestDevicesWithoutTable(t *testing.T) {
	control, spec := newSpec(t)
	ctx := t.Context()
	// A crash between the creation of a device and the load of its table leaves it without one.
	_, err := control.Create(spec.Name, "THINSNAP-"+spec.ID+"-pool")
	require.NoError(t, err)
	p, err := spec.Open(ctx, control, false)
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Close(ctx)) }()
	require.NoError(t, p.CreateThin(ctx, 1))
	_, err = control.Create(p.VolumeName(1), "THINSNAP-"+spec.ID+"-1")
	require.NoError(t, err)
	_, err = p.Lookup(ctx, 1)
	require.ErrorIs(t, err, devmapper.ErrNotFound)
	_, err = p.Activate(ctx, 1, volumeBytes, false)
	require.NoError(t, err)
}

func TestVolumes(t *testing.T) {
	control, spec := newSpec(t)
	ctx := t.Context()
	p, err := spec.Open(ctx, control, false)
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Close(ctx)) }()
	_, err = p.Activate(ctx, 1, volumeBytes, false)
	require.ErrorIs(t, err, thin.ErrNoDevice)
	require.NoError(t, p.CreateThin(ctx, 1))
	vol, err := p.Activate(ctx, 1, volumeBytes, false)
	require.NoError(t, err)

	f, err := os.OpenFile(vol.Path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.Write(make([]byte, 1<<20))
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.ErrorIs(t, p.Deactivate(ctx, 1), devmapper.ErrBusy)
	got, err := p.Lookup(ctx, 1)
	require.NoError(t, err)
	require.Equal(t, 1, got.OpenCount)
	require.NoError(t, f.Close())
	require.NoError(t, p.Flush(ctx, 1))
	mapped, err := p.Mapped(ctx, 1)
	require.NoError(t, err)
	require.EqualValues(t, 1<<20, mapped)
	status, err := p.Status(ctx)
	require.NoError(t, err)
	require.EqualValues(t, 1<<20, status.Data.Used)

	require.NoError(t, p.Suspend(ctx, 1))
	require.NoError(t, p.CreateSnap(ctx, 2, 1))
	require.NoError(t, p.Resume(1))
	_, err = p.Activate(ctx, 2, volumeBytes, true)
	require.NoError(t, err)
	active, err := p.Active(ctx)
	require.NoError(t, err)
	require.Len(t, active, 2)
	n, err := p.CountActive(ctx)
	require.NoError(t, err)
	require.Equal(t, 2, n)

	f, err = os.OpenFile(vol.Path, os.O_RDONLY|unix.O_EXCL, 0)
	require.NoError(t, err)
	require.ErrorIs(t, p.Discard(ctx, 1, nil), devmapper.ErrBusy)
	require.NoError(t, f.Close())
	require.NoError(t, p.Discard(ctx, 1, nil))
	mapped, err = p.Mapped(ctx, 1)
	require.NoError(t, err)
	require.Zero(t, mapped)
	mapped, err = p.Mapped(ctx, 2)
	require.NoError(t, err)
	require.EqualValues(t, 1<<20, mapped, "the snapshot keeps its blocks")
	require.NoError(t, p.Deactivate(ctx, 1))
	require.NoError(t, p.Deactivate(ctx, 1), "not active any longer")
	require.NoError(t, p.Delete(ctx, 1))
	require.ErrorIs(t, p.Delete(ctx, 1), thin.ErrNoDevice)
}

// TestVolumesInMetadata reads while the pool commits all the time.
func TestVolumesInMetadata(t *testing.T) {
	control, spec := newSpec(t)
	ctx := t.Context()
	p, err := spec.Open(ctx, control, false)
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Close(ctx)) }()
	volumes, err := p.Volumes(ctx, 0, thin.MaxID)
	require.NoError(t, err)
	require.Empty(t, volumes)
	for _, id := range []thin.ID{5, 7, 100} {
		require.NoError(t, p.CreateThin(ctx, id))
	}
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			case <-time.After(20 * time.Millisecond):
			}
			if err := errors.Join(p.CreateSnap(ctx, 1000, 5), p.Delete(ctx, 1000)); err != nil {
				stopped <- err
				return
			}
		}
	}()
	for range 20 {
		volumes, err = p.Volumes(ctx, 1, 99)
		require.NoError(t, err)
		require.Equal(t, map[thin.ID]bool{5: true, 7: true}, volumes)
	}
	close(stop)
	require.NoError(t, <-stopped)
}
