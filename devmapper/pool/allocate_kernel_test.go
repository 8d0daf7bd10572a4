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
	"github.com/thinsnap/thinsnap/internal/dmtest/faulty"
)

// newPoolOnADisk opens a pool of 128 MiB on a disk of 400 MiB; a volume maps 64 MiB of it.
func newPoolOnADisk(t *testing.T, filesystem string) (*pool.Pool, pool.LoopSpec) {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	disk := faulty.New(t, 400*mib)
	var dir string
	if filesystem == "xfs" {
		dir = disk.MountXFS(t)
	} else {
		dir = disk.Mount(t, true)
	}
	spec := pool.LoopSpec{
		ID: rand.Text(), Name: "allocated", BlockBytes: 64 << 10,
		DataFile: filepath.Join(dir, "data"), MetadataFile: filepath.Join(dir, "metadata"),
	}
	require.NoError(t, spec.CreateFiles(t.Context(), 128*mib, 4*mib))
	control, err := devmapper.Open()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, control.Close()) })
	p, err := spec.Open(t.Context(), control, false)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close(context.Background())) })
	require.Empty(t, p.NotAllocated())
	require.NoError(t, p.CreateThin(t.Context(), 1))
	vol, err := p.Activate(t.Context(), 1, 256*mib, false)
	require.NoError(t, err)
	require.NoError(t, writeTo(vol.Path, 0, 64*mib))
	return p, spec
}

func writeTo(device string, at, bytes int64) error {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, bytes), at)
	return errors.Join(err, f.Sync(), f.Close())
}

// leave fills the disk of a file until the given number of bytes is free.
func leave(t *testing.T, file string, bytes int64) (filler string) {
	t.Helper()
	filler = filepath.Join(filepath.Dir(file), "filler")
	f, err := os.Create(filler)
	require.NoError(t, err)
	defer f.Close()
	at := int64(0)
	for {
		var fs unix.Statfs_t
		require.NoError(t, unix.Fstatfs(int(f.Fd()), &fs))
		n := int64(fs.Bavail)*fs.Bsize - bytes
		for n > 0 && unix.Fallocate(int(f.Fd()), 0, at, n) != nil {
			n -= max(n/8, 4096) &^ 4095
		}
		if n <= 0 {
			return filler
		}
		at += n
	}
}

// TestAllocatedPoolOnAFullDisk fills the pool while its disk is full.
func TestAllocatedPoolOnAFullDisk(t *testing.T) {
	skipIfShort(t)
	for _, filesystem := range []string{"ext4", "xfs"} {
		t.Run(filesystem, func(t *testing.T) {
			p, spec := newPoolOnADisk(t, filesystem)
			leave(t, spec.DataFile, 0)
			status, err := p.Status(t.Context())
			require.NoError(t, err)
			require.Zero(t, status.Data.Holes)
			require.EqualValues(t, 64*mib, status.Data.Available)
			require.Zero(t, status.Overpromised())
			require.NoError(t, writeTo(p.VolumePath(1), 64*mib, 60*mib))
			require.ErrorIs(t, p.Extend(t.Context(), 256*mib, 0), unix.ENOSPC)
			requireSizes(t, p, 128*mib, 4*mib)
			info, err := os.Stat(spec.DataFile)
			require.NoError(t, err)
			require.EqualValues(t, 128*mib, info.Size())
		})
	}
}

// TestHolesAreAllocatedAgain: discards punch holes while the disk has room. The holes are allocated
// again when it runs short, and no discard punches one then.
func TestHolesAreAllocatedAgain(t *testing.T) {
	skipIfShort(t)
	for _, filesystem := range dmtest.Filesystems() {
		t.Run(filesystem, func(t *testing.T) {
			ctx := t.Context()
			p, spec := newPoolOnADisk(t, filesystem)
			status := func() pool.Status {
				s, err := p.Status(ctx)
				require.NoError(t, err)
				return s
			}
			require.NoError(t, p.Discard(ctx, 1, nil))
			// st_blocks includes a block of the file system's own records.
			require.InDelta(t, 64*mib, status().Data.Holes, 64<<10)
			watch, err := p.KeepAllocated(ctx)
			require.NoError(t, err)
			require.True(t, watch)
			require.NotZero(t, status().Data.Holes, "the disk has room")

			filler := leave(t, spec.DataFile, 70*mib)
			_, err = p.KeepAllocated(ctx)
			require.NoError(t, err)
			require.Zero(t, status().Data.Holes)
			require.Equal(t, thin.DiscardNoPassdown, status().Discard)
			require.NoError(t, os.Rename(filler, filler+"-1"))
			filler = leave(t, spec.DataFile, 0)
			require.NoError(t, writeTo(p.VolumePath(1), 0, 120*mib))
			require.NoError(t, p.Discard(ctx, 1, nil))
			require.Zero(t, status().Data.Holes)

			// With room again, discards free space on the disk.
			require.NoError(t, errors.Join(os.Remove(filler), os.Remove(filler+"-1")))
			// XFS frees the space of removed files a moment later.
			require.Eventually(t, func() bool {
				_, err := p.KeepAllocated(ctx)
				return err == nil && status().Discard == thin.DiscardPassdown
			}, time.Minute, 10*time.Millisecond)
			require.NoError(t, writeTo(p.VolumePath(1), 0, 32*mib))
			require.NoError(t, p.Discard(ctx, 1, nil))
			require.NotZero(t, status().Data.Holes)

			// The disk fills up before the next call of KeepAllocated.
			leave(t, spec.DataFile, 0)
			require.NotZero(t, status().Overpromised())
			_, err = p.KeepAllocated(ctx)
			require.ErrorIs(t, err, unix.ENOSPC)
			require.Equal(t, thin.DiscardNoPassdown, status().Discard)
			require.NoError(t, os.Remove(filler))
			require.Eventually(t, func() bool {
				_, err := p.KeepAllocated(ctx)
				return err == nil && status().Data.Holes == 0
			}, time.Minute, 10*time.Millisecond)
		})
	}
}

// TestSparsePool: only the metadata of an earlier version's pool is allocated.
func TestSparsePool(t *testing.T) {
	skipIfShort(t)
	p, spec := newPoolOnADisk(t, "ext4")
	ctx := t.Context()
	require.NoError(t, p.Close(ctx))
	// With the sizes of the creation.
	metadata, err := os.ReadFile(spec.MetadataFile)
	require.NoError(t, err)
	require.NoError(t, os.Remove(spec.MetadataFile))
	require.NoError(t, os.WriteFile(spec.MetadataFile, metadata[:1*mib], 0o600))
	require.NoError(t, os.Truncate(spec.MetadataFile, 4*mib))
	require.NoError(t, os.Truncate(spec.DataFile, 1<<30))
	control, err := devmapper.Open()
	require.NoError(t, err)
	defer control.Close()
	spec.Sparse = true
	p, err = spec.Open(ctx, control, true)
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Close(ctx)) }()
	require.Contains(t, p.NotAllocated(), "a version before 0.1.0")
	watch, err := p.KeepAllocated(ctx)
	require.NoError(t, err)
	require.False(t, watch)
	status, err := p.Status(ctx)
	require.NoError(t, err)
	require.Zero(t, status.Metadata.Holes)
	require.NotZero(t, status.Data.Holes)
	require.NotZero(t, status.Overpromised())
	require.Equal(t, thin.DiscardPassdown, status.Discard)
	largest, _, err := p.Largest(ctx)
	require.NoError(t, err)
	require.Equal(t, status.Data.Total, largest, "it does not grow by itself")
}
