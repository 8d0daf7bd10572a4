package snapshotter_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/faulty"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// goingDown is XFS_IOC_GOINGDOWN of fs/xfs/libxfs/xfs_fs.h: the file system shuts itself down, as after an
// I/O error.
const goingDown = 0x8004587d

// Arguments of goingDown: with and without a write of the log.
const (
	logFlushed = 1
	logLost    = 2
)

// TestKernelLayerThatLostMetadata: the disk fails for a moment, and only the kernel's writeback of its
// cache meets that. Only the ext4, without its journal, learns of the error; no process does.
func TestKernelLayerThatLostMetadata(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	disk := faulty.New(t, 64<<20)
	dir := disk.Mount(t, false)
	zeroFile(t, filepath.Join(dir, "data"), 48<<20)
	ctx, h := newFaultHost(t, places{data: dir}, faultConfig(), 48<<20, 4<<20)
	require.NoError(t, h.prepare(ctx, unpackKey, ""))
	mounts, err := h.Mounts(ctx, unpackKey)
	require.NoError(t, err)
	mounted(t, mounts, func(at string) {
		// With all blocks mapped, the pool has nothing to commit.
		write(t, at, "big", strings.Repeat("b", 24<<20))
		unix.Sync()
		require.NoError(t, os.Remove(filepath.Join(at, "big")))
		unix.Sync()
		require.NoError(t, h.pool.Commit(ctx))
		for i := range 300 {
			require.NoError(t, os.MkdirAll(filepath.Join(at, fmt.Sprint("d", i), "sub"), 0o700))
		}
		dev, err := os.Open(mounts[0].Source)
		require.NoError(t, err)
		disk.FailWrites(t)
		require.NoError(t, unix.SyncFileRange(int(dev.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE))
		_ = unix.SyncFileRange(int(dev.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE)
		disk.Heal(t)
		require.NoError(t, dev.Close())
		// At this write ext4 checks for earlier failed writes of its own. Newer kernels then refuse it.
		_ = os.WriteFile(filepath.Join(at, "last"), nil, 0o600)
	})
	require.Equal(t, thin.ModeReadWrite, h.mode(t), "the pool saw nothing")
	for range 2 {
		requireFault(t, h.Commit(ctx, "layer", unpackKey), errdefs.ErrDataLoss, unpackKey, "pull or build it again")
	}
	require.NoError(t, h.Remove(ctx, unpackKey))
	h.layer(ctx, t, "again", "", "again", 4<<20)
	h.requireContent(ctx, t, "again", "again", 4<<20)
}

// TestCommitOfAnXFSThatShutDown: only an unclean log shows that an xfs has shut down.
func TestCommitOfAnXFSThatShutDown(t *testing.T) {
	for name, c := range map[string]struct {
		key  string
		how  int
		lost bool
	}{
		"container":    {"container", logFlushed, false},
		"unpack":       {unpackKey, logFlushed, true},
		"unpack, lost": {unpackKey, logLost, true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, h := newTestHost(t, filesystems["xfs"])
			mounts, err := h.Prepare(ctx, c.key, "")
			require.NoError(t, err)
			mounted(t, mounts, func(dir string) {
				write(t, dir, "file", "content")
				root, err := os.Open(dir)
				require.NoError(t, err)
				defer root.Close()
				require.NoError(t, unix.Syncfs(int(root.Fd())))
				require.NoError(t, unix.IoctlSetPointerInt(int(root.Fd()), goingDown, c.how))
			})
			err = h.Commit(ctx, "layer", c.key)
			if c.lost {
				requireFault(t, err, errdefs.ErrDataLoss, c.key, "pull or build it again")
				return
			}
			require.NoError(t, err)
			view, err := h.View(ctx, "view", "layer")
			require.NoError(t, err)
			mounted(t, view, func(dir string) { require.Equal(t, "content", read(t, dir, "file")) })
		})
	}
}

// TestCommitOfAnEmptyUnpack: a layer can have no files. But an xfs without a mount and unmount looks like
// one that could not write.
func TestCommitOfAnEmptyUnpack(t *testing.T) {
	for name, config := range filesystems {
		t.Run(name, func(t *testing.T) {
			ctx, h := newTestHost(t, config)
			require.NoError(t, prepareAndCommit(t, h, "below", ""))
			for i, parent := range []string{"", "below"} {
				mounts, err := h.Prepare(ctx, unpackKeyOf("on-"+parent), parent)
				require.NoError(t, err)
				if name == "xfs" {
					requireFault(t, h.Commit(ctx, fmt.Sprint(i), unpackKeyOf("on-"+parent)), errdefs.ErrDataLoss, unpackKeyOf("on-"+parent),
						"never unmounted")
					require.NoError(t, h.Remove(ctx, unpackKeyOf("on-"+parent)))
					mounts, err = h.Prepare(ctx, unpackKeyOf("on-"+parent), parent)
					require.NoError(t, err)
				}
				mounted(t, mounts, func(string) {})
				require.NoError(t, h.Commit(ctx, fmt.Sprint(i), unpackKeyOf("on-"+parent)))
			}
		})
	}
}

// TestCommitOfAnUnpackThatIsMounted: an ext4 without its journal is whole only after the unmount.
func TestCommitOfAnUnpackThatIsMounted(t *testing.T) {
	ctx, h := newTestHost(t, filesystems["ext4"])
	mounts, err := h.Prepare(ctx, unpackKey, "")
	require.NoError(t, err)
	at := t.TempDir()
	require.NoError(t, mount.All(mounts, at))
	holder := exec.Command("cat")
	holder.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	stdin, err := holder.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, holder.Start())
	for i := range 100 {
		write(t, at, fmt.Sprint("f", i), "content")
	}
	orphan, err := os.Create(filepath.Join(at, "orphan"))
	require.NoError(t, err)
	_, err = orphan.Write(bytes.Repeat([]byte("x"), 1<<20))
	require.NoError(t, err)
	require.NoError(t, os.Remove(orphan.Name()))
	require.NoError(t, mount.UnmountAll(at, unix.MNT_DETACH))

	volumes := h.volumes(t)
	requireFault(t, h.Commit(ctx, "layer", unpackKey), errdefs.ErrUnavailable, unpackKey, "still mounted")
	require.Equal(t, volumes, h.volumes(t), "nothing is copied")
	require.NoError(t, orphan.Close())
	require.NoError(t, stdin.Close())
	require.NoError(t, holder.Wait())
	require.NoError(t, h.Commit(ctx, "layer", unpackKey))
	view, err := h.View(ctx, "view", "layer")
	require.NoError(t, err)
	mounted(t, view, func(dir string) { require.Equal(t, "content", read(t, dir, "f99")) })
}

func (h *host) volumes(t *testing.T) int {
	t.Helper()
	all, err := h.pool.Volumes(t.Context(), 0, 1<<16)
	require.NoError(t, err)
	return len(all)
}

// TestMountAfterCommit: a client that uses the mounts of Prepare only after the Commit cannot write.
func TestMountAfterCommit(t *testing.T) {
	for name, config := range filesystems {
		t.Run(name, func(t *testing.T) {
			ctx, h := newTestHost(t, config)
			held := &heldPool{}
			require.NoError(t, h.Close())
			h.wrap = func(p snapshotter.Pool) snapshotter.Pool { held.Pool = p; return held }
			require.NoError(t, h.open(ctx, config))
			held.hold.Store(true)
			mounts, err := h.Prepare(ctx, "a", "")
			require.NoError(t, err)
			mounted(t, mounts, func(dir string) { write(t, dir, "file", "content") })
			require.NoError(t, h.Commit(ctx, "layer", "a"))
			dir := t.TempDir()
			require.Error(t, mount.All(mounts, dir))
			dev, err := os.OpenFile(mounts[0].Source, os.O_WRONLY, 0)
			if err == nil {
				_, err = dev.WriteAt(make([]byte, 4096), 1<<20)
				require.NoError(t, dev.Close())
			}
			require.Error(t, err)
			held.hold.Store(false)
			view, err := h.View(ctx, "view", "layer")
			require.NoError(t, err)
			mounted(t, view, func(dir string) { require.Equal(t, "content", read(t, dir, "file")) })
		})
	}
}

// TestKernelCommitOfAContainerThatLostData: the kernel failed to write back a file, and reported that to no
// process. It reports it to a sync of the whole file system, which Commit does before the freeze.
func TestKernelCommitOfAContainerThatLostData(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	disk := faulty.New(t, 64<<20)
	dir := disk.Mount(t, false)
	zeroFile(t, filepath.Join(dir, "data"), 48<<20)
	ctx, h := newFaultHost(t, places{data: dir}, faultConfig(), 48<<20, 4<<20)
	require.NoError(t, h.prepare(ctx, "container", ""))
	file := filepath.Join(h.mount(ctx, t, "container"), "file")
	require.NoError(t, overwrite(file, bytes.Repeat([]byte("a"), 1<<20)))
	require.NoError(t, h.pool.Commit(ctx))
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.Write(bytes.Repeat([]byte("b"), 1<<20))
	require.NoError(t, err)
	disk.FailWrites(t)
	_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	disk.Heal(t)
	require.NoError(t, f.Close())
	require.Error(t, h.Commit(ctx, "layer", "container"))
	requireFault(t, h.Commit(ctx, "layer", "container"), errdefs.ErrDataLoss, "container", "pull or build it again")
	require.NoError(t, h.restart(ctx, faultConfig()))
	requireFault(t, h.Commit(ctx, "layer", "container"), errdefs.ErrDataLoss, "container", "pull or build it again")
	requireFault(t, h.RequireWhole(ctx, "container"), errdefs.ErrDataLoss, "container", "pull or build it again")
}

// TestUnsafeFilesystemOfAGuest: a mount of it would wait for hours, or open another device.
func TestUnsafeFilesystemOfAGuest(t *testing.T) {
	ctx, h := newTestHost(t, filesystems["ext4"])
	mounts, err := h.Prepare(ctx, "guest", "")
	require.NoError(t, err)
	for _, command := range []string{"feature mmp", "ssv journal_dev 0x0701"} {
		out, err := exec.Command("debugfs", "-w", "-R", command, mounts[0].Source).CombinedOutput()
		require.NoError(t, err, "%s", out)
		_, err = h.Mounts(ctx, "guest")
		requireFault(t, err, errdefs.ErrFailedPrecondition, "guest", "the host does not mount such a file system")
		requireFault(t, h.Commit(ctx, "layer", "guest"), errdefs.ErrFailedPrecondition, "guest",
			"the host does not mount such a file system")
		_, err = h.Freeze(ctx, "guest")
		requireFault(t, err, errdefs.ErrFailedPrecondition, "guest", "the host does not mount such a file system")
		token, err := h.IssueFork(ctx, "guest")
		require.NoError(t, err)
		_, err = h.Prepare(ctx, "fork", "", from(token))
		requireFault(t, err, errdefs.ErrFailedPrecondition, "guest", "the host does not mount such a file system")
		require.NoError(t, h.Cleanup(ctx))
	}
}

// heldPool deactivates nothing while hold is set, as if each device were open.
type heldPool struct {
	snapshotter.Pool
	hold atomic.Bool
}

func (p *heldPool) Deactivate(ctx context.Context, id thin.ID) error {
	if p.hold.Load() {
		return devmapper.ErrBusy
	}
	return p.Pool.Deactivate(ctx, id)
}
