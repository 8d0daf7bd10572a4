package snapshotter_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// allocated is the space of the pool's data file on the disk below it.
func (h *host) allocated(t *testing.T) int64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(h.root, "pool", "data"), &st))
	return st.Blocks * 512
}

func (h *host) dataUsed(t *testing.T) int64 {
	t.Helper()
	require.NoError(t, h.pool.Commit(t.Context()))
	status, err := h.pool.Status(t.Context())
	require.NoError(t, err)
	return int64(status.Data.Used)
}

// freeBytes is the free space of the file system mounted at dir.
func freeBytes(t require.TestingT, dir string) int64 {
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &st))
	return int64(st.Bfree) * st.Bsize
}

// awaitFree waits until the file system mounted at dir has that many bytes free, and has written its
// journal. XFS frees the blocks of a deleted file in the background.
func awaitFree(t *testing.T, dir string, bytes int64) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.GreaterOrEqual(c, freeBytes(c, dir), bytes)
	}, time.Minute, time.Millisecond)
	unix.Sync()
}

// Only the space of a container's deleted files returns to the pool and to the file below it. Blocks shared
// with the layer below stay.
func TestTrimGivesSpaceBack(t *testing.T) {
	for name, config := range filesystems {
		t.Run(name, func(t *testing.T) {
			const size = 12 << 20
			ctx, h := newTestHost(t, config)
			layer, err := h.Prepare(ctx, "layer-active", "")
			require.NoError(t, err)
			mounted(t, layer, func(dir string) { write(t, dir, "shared", string(bytes.Repeat([]byte{'s'}, 4<<20))) })
			require.NoError(t, h.Commit(ctx, "layer", "layer-active"))
			mounts, err := h.Prepare(ctx, "box", "layer")
			require.NoError(t, err)
			_, err = h.Trim(ctx, "box")
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "not mounted")
			mounted(t, mounts, func(dir string) {
				write(t, dir, "kept", "kept")
				write(t, dir, "big", string(bytes.Repeat([]byte{'x'}, size)))
				unix.Sync()
				used, allocated := h.dataUsed(t), h.allocated(t)
				free := freeBytes(t, dir)
				require.NoError(t, os.Remove(filepath.Join(dir, "big")))
				require.NoError(t, os.Remove(filepath.Join(dir, "shared")))
				awaitFree(t, dir, free+size+4<<20)
				require.Greater(t, h.dataUsed(t), used-1<<20, "deleting alone gives nothing back")
				done, err := h.Trim(ctx, "box")
				require.NoError(t, err)
				require.NoError(t, done.Stopped)
				require.GreaterOrEqual(t, done.Bytes, done.Unmapped)
				require.GreaterOrEqual(t, done.Unmapped, uint64(size+3<<20))
				require.Less(t, h.dataUsed(t), used-size*3/4)
				require.Greater(t, h.dataUsed(t), used-size-3<<20, "what the layer has is shared")
				require.Less(t, h.allocated(t), allocated-size*3/4)
				require.Equal(t, "kept", read(t, dir, "kept"))
			})
			mounted(t, mounts, func(dir string) { require.Equal(t, "kept", read(t, dir, "kept")) })
			view, err := h.View(ctx, "view", "layer")
			require.NoError(t, err)
			mounted(t, view, func(dir string) { require.Len(t, read(t, dir, "shared"), 4<<20) })
		})
	}
}

// Containers are committed, stopped and removed during repeated trims. A layer has the content of the
// Commit, and no mount is left.
func TestTrimWhileOthersWork(t *testing.T) {
	for _, fs := range dmtest.Filesystems() {
		t.Run(fs, func(t *testing.T) {
			ctx, h := newTestHost(t, filesystems[fs])
			until, stop := context.WithCancel(ctx)
			var trimming sync.WaitGroup
			defer trimming.Wait()
			defer stop()
			var trimmed atomic.Int64
			trimming.Go(func() {
				for until.Err() == nil {
					_, err := h.Trim(until, "box")
					if err == nil {
						trimmed.Add(1)
					} else if !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) && until.Err() == nil {
						t.Error(err)
					}
				}
			})
			for _, inUse := range []bool{true, false} {
				mounts, err := h.Prepare(ctx, "box", "")
				require.NoError(t, err)
				mounted(t, mounts, func(dir string) {
					write(t, dir, "big", string(bytes.Repeat([]byte{'x'}, 2<<20)))
					unix.Sync()
					require.NoError(t, os.Remove(filepath.Join(dir, "big")))
					write(t, dir, "file", "committed")
					unix.Sync()
					before := trimmed.Load()
					require.Eventually(t, func() bool { return trimmed.Load() > before }, time.Minute, time.Millisecond)
					if inUse {
						require.NoError(t, h.Commit(ctx, "layer", "box"))
						write(t, dir, "file", "later")
					}
				})
				if !inUse {
					require.NoError(t, h.Commit(ctx, "layer", "box"))
				}
				view, err := h.View(ctx, "view", "layer")
				require.NoError(t, err)
				mounted(t, view, func(dir string) { require.Equal(t, "committed", read(t, dir, "file")) })
				require.NoError(t, h.Remove(ctx, "view"))
				require.NoError(t, h.Remove(ctx, "layer"))
				require.NoError(t, h.Cleanup(ctx))
			}
		})
	}
}
