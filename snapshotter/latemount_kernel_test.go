package snapshotter_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// between is a pool that calls onCall after each call to the kernel about one volume, with the number of
// that call. Calls about mounted file systems do not count.
type between struct {
	snapshotter.Pool
	volume thin.ID
	calls  int
	onCall func(call int)
}

func (p *between) did(id thin.ID) {
	if id == p.volume && p.onCall != nil {
		p.calls++
		p.onCall(p.calls)
	}
}

func (p *between) Lookup(ctx context.Context, id thin.ID) (pool.Volume, error) {
	defer p.did(id)
	return p.Pool.Lookup(ctx, id)
}

func (p *between) SetReadOnly(id thin.ID, readOnly bool) error {
	defer p.did(id)
	return p.Pool.SetReadOnly(id, readOnly)
}

func (p *between) Flush(ctx context.Context, id thin.ID) error {
	defer p.did(id)
	return p.Pool.Flush(ctx, id)
}

func (p *between) CreateSnap(ctx context.Context, id, origin thin.ID) error {
	defer p.did(id)
	return p.Pool.CreateSnap(ctx, id, origin)
}

func (p *between) Resume(id thin.ID) error {
	defer p.did(id)
	return p.Pool.Resume(id)
}

func newHostBetween(t *testing.T, config snapshotter.Config) (context.Context, *host, *between) {
	t.Helper()
	ctx, h := newTestHost(t, config)
	p := &between{}
	require.NoError(t, h.Close())
	h.wrap = func(inner snapshotter.Pool) snapshotter.Pool { p.Pool = inner; return p }
	require.NoError(t, h.open(ctx, config))
	return ctx, h, p
}

// TestKernelMountDuringCommit: after any call of a Commit to the kernel, a client mounts and writes. It
// unmounts after the same call or after the last one; with dmtest.Thorough, after any later one. After the
// clean unmount nothing is lost: the Commit succeeds, or is Unavailable and succeeds when repeated.
func TestKernelMountDuringCommit(t *testing.T) {
	for name, config := range filesystems {
		for _, key := range []string{"container", unpackKey} {
			t.Run(fmt.Sprintf("%s, unpack=%v", name, key == unpackKey), func(t *testing.T) {
				ctx, h, p := newHostBetween(t, config)
				outcomes := make(map[string]int)
				const calls = 8
				for from := 1; from <= calls; from++ {
					for to := from; to <= calls; to++ {
						if to != from && to != calls && !dmtest.Thorough() {
							continue
						}
						layer := fmt.Sprintf("layer-%d-%d", from, to)
						mounts, err := h.Prepare(ctx, key, "")
						require.NoError(t, err)
						mounted(t, mounts, func(dir string) { write(t, dir, "first", "first") })
						at, isMounted := t.TempDir(), false
						unmount := func() {
							if isMounted {
								isMounted = false
								require.NoError(t, unix.Unmount(at, 0))
							}
						}
						p.volume, p.calls = h.volumeOf(t, key), 0
						p.onCall = func(call int) {
							if call == from && mount.All(mounts, at) == nil {
								isMounted = true
								write(t, at, "second", "second")
							}
							if call == to {
								unmount()
							}
						}
						err = h.Commit(ctx, layer, key)
						p.onCall = nil
						unmount()
						outcomes[fmt.Sprint(errdefs.Resolve(err))]++
						if err != nil {
							require.ErrorIs(t, err, errdefs.ErrUnavailable, "%s", layer)
							require.NoError(t, h.Commit(ctx, layer, key), "after a clean unmount")
						}
						view, err := h.View(ctx, "view", layer)
						require.NoError(t, err)
						mounted(t, view, func(dir string) { require.Equal(t, "first", read(t, dir, "first")) })
						require.NoError(t, h.Remove(ctx, "view"))
						require.NoError(t, h.Cleanup(ctx))
					}
				}
				t.Log(outcomes)
			})
		}
	}
}

// TestKernelUnpackMountedDuringCommit: at each point at which a Commit considers an unpack unused, a
// client mounts it, and does not unmount it.
func TestKernelUnpackMountedDuringCommit(t *testing.T) {
	ctx, h, p := newHostBetween(t, filesystems["ext4"])
	for call := 1; call <= 2; call++ {
		key, layer := unpackKeyOf(fmt.Sprint(call)), fmt.Sprint("layer-", call)
		mounts, err := h.Prepare(ctx, key, "")
		require.NoError(t, err)
		at := t.TempDir()
		p.volume, p.calls = h.volumeOf(t, key), 0
		p.onCall = func(now int) {
			if now == call && mount.All(mounts, at) == nil {
				write(t, at, "file", "content")
			}
		}
		volumes := h.volumes(t)
		err = h.Commit(ctx, layer, key)
		p.onCall = nil
		if err == nil { // the device has refused the mount
			require.NoFileExists(t, at+"/file")
			continue
		}
		requireFault(t, err, errdefs.ErrUnavailable, key, "still mounted")
		require.Equal(t, volumes, h.volumes(t), "nothing is copied")
		write(t, at, "more", "more")
		require.NoError(t, unix.Unmount(at, 0))
		require.NoError(t, h.Commit(ctx, layer, key))
		view, err := h.View(ctx, "view", layer)
		require.NoError(t, err)
		mounted(t, view, func(dir string) {
			require.Equal(t, "content", read(t, dir, "file"))
			require.Equal(t, "more", read(t, dir, "more"))
		})
		require.NoError(t, h.Remove(ctx, "view"))
	}
}

// TestKernelUnpackThatCrashedDuringCommit: after a crash of the machine, an ext4 without its journal has
// the superblock of a mounted file system. It is not whole, even after a later mount that is unmounted
// cleanly.
func TestKernelUnpackThatCrashedDuringCommit(t *testing.T) {
	ctx, h, p := newHostBetween(t, filesystems["ext4"])
	mounts, err := h.Prepare(ctx, unpackKey, "")
	require.NoError(t, err)
	p.volume = h.volumeOf(t, unpackKey)
	p.onCall = func(call int) {
		if call != 1 {
			return
		}
		superblock := make([]byte, 4096)
		mounted(t, mounts, func(dir string) {
			write(t, dir, "file", "content")
			unix.Sync()
			readAt(t, mounts[0].Source, superblock)
		})
		dev, err := os.OpenFile(mounts[0].Source, os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = dev.WriteAt(superblock, 0)
		require.NoError(t, err)
		require.NoError(t, dev.Close())
	}
	requireFault(t, h.Commit(ctx, "layer", unpackKey), errdefs.ErrDataLoss, unpackKey, "not unmounted cleanly")
	p.onCall = nil
	requireFault(t, h.Commit(ctx, "layer", unpackKey), errdefs.ErrDataLoss, unpackKey, "pull or build it again")
	mounted(t, mounts, func(dir string) { write(t, dir, "file", "again") })
	requireFault(t, h.Commit(ctx, "layer", unpackKey), errdefs.ErrDataLoss, unpackKey, "pull or build it again")
}

// TestKernelCommitOfARepairedDisk: a restarted virtual machine checks and repairs its disk. An earlier
// Commit's finding no longer applies.
func TestKernelCommitOfARepairedDisk(t *testing.T) {
	ctx, h := newTestHost(t, filesystems["ext4"])
	mounts, err := h.Prepare(ctx, "guest", "")
	require.NoError(t, err)
	mounted(t, mounts, func(dir string) { write(t, dir, "file", "content") })
	out, err := exec.Command("debugfs", "-w", "-R", "ssv state 2", mounts[0].Source).CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, inUse := range []bool{false, true} {
		dev, err := os.Open(mounts[0].Source)
		require.NoError(t, err)
		if !inUse {
			require.NoError(t, dev.Close())
		}
		requireFault(t, h.Commit(ctx, "layer", "guest"), errdefs.ErrDataLoss, "guest", "pull or build it again")
		requireFault(t, h.RequireWhole(ctx, "guest"), errdefs.ErrDataLoss, "guest", "pull or build it again")
		_ = dev.Close()
	}
	_ = exec.Command("e2fsck", "-fy", mounts[0].Source).Run() // its exit code reports a repair
	require.NoError(t, h.RequireWhole(ctx, "guest"))
	require.NoError(t, h.Commit(ctx, "layer", "guest"))
}

func readAt(t *testing.T, dev string, content []byte) {
	t.Helper()
	f, err := os.Open(dev)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.ReadAt(content, 0)
	require.NoError(t, err)
}
