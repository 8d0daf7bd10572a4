package snapshotter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/pool/repair"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/autoextend"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/faulty"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// fillDisk leaves the given number of bytes free in the file system of dir until the returned file is
// removed.
func fillDisk(t *testing.T, dir string, leave int64) (file string) {
	t.Helper()
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &fs))
	file = filepath.Join(dir, "filler")
	f, err := os.Create(file)
	require.NoError(t, err)
	defer f.Close()
	// The file system reserves some of the free blocks.
	for size := int64(fs.Bavail)*fs.Bsize - leave; ; size -= fs.Bsize {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err == nil {
			return file
		}
		require.Positive(t, size)
	}
}

// zeroFile makes a file with all blocks allocated, so that a write to it needs no further block of the
// disk.
func zeroFile(t *testing.T, file string, size int) {
	t.Helper()
	require.NoError(t, overwrite(file, bytes.Repeat([]byte{0}, size)))
}

// TestKernelFullDiskBelowThePool fills the disk below a pool's sparse file.
func TestKernelFullDiskBelowThePool(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	dir := faulty.New(t, 80<<20).Mount(t, true)
	config := faultConfig()
	config.MinFreePercent = 10
	ctx, h := newFaultHost(t, places{data: dir}, config, 256<<20, 4<<20)
	h.layer(ctx, t, "other", "", "other", 12<<20)
	require.NoError(t, h.prepare(ctx, unpackKeyOf("hog"), ""))
	require.NoError(t, h.prepare(ctx, "clean", "other"))
	filler := fillDisk(t, dir, 512<<10)

	requireFault(t, h.prepare(ctx, "a", "other"), errdefs.ErrResourceExhausted, "a", "make room on that disk")
	h.requireContent(ctx, t, "other", "other", 12<<20)
	mounts, err := h.Mounts(ctx, unpackKeyOf("hog"))
	require.NoError(t, err)
	mounted(t, mounts, func(dir string) { write(t, dir, "file", strings.Repeat("h", 8<<20)) })
	require.Error(t, h.Commit(ctx, "hogged", unpackKeyOf("hog")))
	require.Equal(t, thin.ModeReadWrite, h.mode(t))

	require.NoError(t, os.Remove(filler))
	requireFault(t, h.Commit(ctx, "hogged", unpackKeyOf("hog")), errdefs.ErrDataLoss, unpackKeyOf("hog"), "pull or build it again")
	require.NoError(t, h.Remove(ctx, unpackKeyOf("hog")))
	require.NoError(t, h.Cleanup(ctx))
	h.layer(ctx, t, "again", "other", "again", 4<<20)
	h.requireContent(ctx, t, "again", "again", 4<<20)
	h.requireContent(ctx, t, "other", "other", 12<<20)
}

// TestKernelFaultyDataDevice makes reads and writes of the pool's data fail for a while.
func TestKernelFaultyDataDevice(t *testing.T) {
	for name, fail := range map[string]func(*faulty.Device, testing.TB){
		"reads and writes": (*faulty.Device).Fail,
		"writes":           (*faulty.Device).FailWrites,
	} {
		t.Run(name, func(t *testing.T) {
			dmtest.RequireKernel(t)
			dmtest.NoLeaks(t)
			disk := faulty.New(t, 64<<20)
			dir := disk.Mount(t, false)
			zeroFile(t, filepath.Join(dir, "data"), 48<<20)
			config := faultConfig()
			config.Spares = 2
			// thin_check needs a file system that supports O_DIRECT.
			metadata := faulty.New(t, 16<<20).Mount(t, true)
			ctx, h := newFaultHost(t, places{data: dir, metadata: metadata}, config, 48<<20, 4<<20)
			h.layer(ctx, t, "other", "", "other", 4<<20)
			require.NoError(t, h.prepare(ctx, unpackKeyOf("broken"), ""))
			mounts, err := h.Mounts(ctx, unpackKeyOf("broken"))
			require.NoError(t, err)
			mounted(t, mounts, func(dir string) {
				write(t, dir, "file", strings.Repeat("b", 4<<20))
				fail(disk, t)
			})

			err = h.Commit(ctx, "layer", unpackKeyOf("broken"))
			require.True(t, errdefs.IsUnavailable(err) || errdefs.IsDataLoss(err), "%v", err)
			// Operations that need no data continue.
			_, err = h.Usage(ctx, "other")
			require.NoError(t, err)
			_, err = h.View(ctx, "view", "other")
			if h.mode(t) == thin.ModeFail {
				// The kernel fails a pool if it cannot even roll back to the last commit.
				requireFault(t, err, errdefs.ErrUnavailable, "view", "which deactivates the pool")
			} else {
				require.NoError(t, err)
				require.NoError(t, h.Remove(ctx, "view"))
			}
			require.Less(t, took(func() { require.NoError(t, h.Cleanup(ctx)) }), quick)

			disk.Heal(t)
			requireFault(t, h.Commit(ctx, "layer", unpackKeyOf("broken")), errdefs.ErrDataLoss, unpackKeyOf("broken"), "pull or build it again")
			require.NoError(t, h.Remove(ctx, unpackKeyOf("broken")))
			// A pool that could not flush its data at a commit takes no more changes.
			err = h.prepare(ctx, "a", "other")
			if err != nil {
				requireFault(t, err, errdefs.ErrUnavailable, "a", "which deactivates the pool")
			}
			if err != nil {
				// The kernel reports a failed write of the file to the next process that flushes it. The
				// remount keeps that from being the pool.
				backing, err := h.pool.Backing()
				require.NoError(t, err)
				h.repairPool(ctx, t, func() { disk.Remount(t, dir) }, clearNeedsCheck(backing.MetadataFile))
				require.NoError(t, h.prepare(ctx, "b", "other"))
			}
			h.layer(ctx, t, "again", "other", "again", 4<<20)
			require.NoError(t, h.Cleanup(ctx))
			require.Equal(t, thin.ModeReadWrite, h.mode(t))
			h.requireContent(ctx, t, "again", "again", 4<<20)
			h.requireContent(ctx, t, "other", "other", 4<<20)
		})
	}
}

// TestKernelHangingDataDevice stops a disk from answering for a while.
func TestKernelHangingDataDevice(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	disk := faulty.New(t, 64<<20)
	dir := disk.Mount(t, false)
	zeroFile(t, filepath.Join(dir, "data"), 48<<20)
	ctx, h := newFaultHost(t, places{data: dir}, faultConfig(), 48<<20, 4<<20)
	h.layer(ctx, t, "other", "", "other", 1<<20)
	require.NoError(t, h.prepare(ctx, "running", "other"))
	running := h.mount(ctx, t, "running")
	write(t, running, "file", strings.Repeat("r", 4<<20))
	disk.Hang(t)
	defer disk.Heal(t)

	limited, cancel := context.WithTimeout(ctx, quick/10)
	defer cancel()
	var err error
	require.Less(t, took(func() { err = h.Commit(limited, "layer", "running") }), quick)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = h.Stat(ctx, "running")
	require.NoError(t, err)
	// The pool flushes its data before each commit.
	limited, cancel = context.WithTimeout(ctx, quick/10)
	defer cancel()
	require.Less(t, took(func() { err = h.prepare(limited, "a", "other") }), quick)
	require.ErrorIs(t, err, context.DeadlineExceeded)

	disk.Heal(t)
	require.NoError(t, h.prepare(ctx, "b", "other"))
	require.Eventually(t, func() bool { return h.Commit(ctx, "layer", "running") == nil }, quick, quick/100)
	h.requireContent(ctx, t, "layer", "r", 4<<20)
}

// repairPool does what an operator does for a pool that takes no changes: it deactivates the pool, and has its
// metadata checked.
func (h *host) repairPool(ctx context.Context, t *testing.T, disk func(), commands ...[]string) {
	t.Helper()
	h.repairPoolWith(ctx, t, faultConfig(), disk, commands...)
}

func (h *host) repairPoolWith(ctx context.Context, t *testing.T, config snapshotter.Config, disk func(), commands ...[]string) {
	t.Helper()
	require.NoError(t, h.Close())
	require.NoError(t, h.pool.Close(ctx))
	if disk != nil {
		disk()
	}
	for _, c := range commands {
		out, err := exec.Command(c[0], c[1:]...).CombinedOutput()
		require.NoError(t, err, "%s: %s", c, out)
	}
	require.NoError(t, h.open(ctx, config))
}

func clearNeedsCheck(file string) []string {
	return []string{"thin_check", "--clear-needs-check-flag", file}
}

// TestKernelFaultyMetadataDevice makes the disk below the pool's metadata fail.
func TestKernelFaultyMetadataDevice(t *testing.T) {
	for name, fail := range map[string]func(*faulty.Device, testing.TB){
		"reads and writes": (*faulty.Device).Fail,
		"writes":           (*faulty.Device).FailWrites,
	} {
		t.Run(name, func(t *testing.T) {
			dmtest.RequireKernel(t)
			dmtest.NoLeaks(t)
			disk := faulty.New(t, 16<<20)
			dir := disk.Mount(t, false)
			zeroFile(t, filepath.Join(dir, "metadata"), 4<<20)
			ctx, h := newFaultHost(t, places{metadata: dir}, faultConfig(), 64<<20, 4<<20)
			h.layer(ctx, t, "other", "", "other", 4<<20)
			require.NoError(t, h.prepare(ctx, "before", "other"))
			fail(disk, t)

			for _, key := range []string{"a", "b"} {
				var err error
				require.Less(t, took(func() { err = h.prepare(ctx, key, "other") }), quick)
				requireFault(t, err, errdefs.ErrUnavailable, key, "which deactivates the pool")
			}
			mode := h.mode(t)
			t.Logf("the pool is %s", mode)
			require.NotEqual(t, thin.ModeReadWrite, mode)
			requireFault(t, h.Commit(ctx, "committed", "before"), errdefs.ErrDataLoss, "before", "pull or build it again")
			_, err := h.Stat(ctx, "other")
			require.NoError(t, err)
			require.NoError(t, h.Remove(ctx, "before"))
			require.Less(t, took(func() { require.NoError(t, h.Cleanup(ctx)) }), quick)

			disk.Heal(t)
			// The pool does not recover by itself, and the error says so.
			requireFault(t, h.prepare(ctx, "c", "other"), errdefs.ErrUnavailable, "c", "which deactivates the pool")
			h.repairPool(ctx, t, func() { disk.Remount(t, dir) }, clearNeedsCheck(filepath.Join(dir, "metadata")))
			require.NoError(t, h.prepare(ctx, "c", "other"))
			h.layer(ctx, t, "again", "other", "again", 4<<20)
			h.requireContent(ctx, t, "again", "again", 4<<20)
			h.requireContent(ctx, t, "other", "other", 4<<20)
		})
	}
}

// TestKernelFullMetadataDevice fills a pool's metadata. thinsnap refuses changes before the kernel does,
// after which the pool would need a repair.
func TestKernelFullMetadataDevice(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	dir := faulty.New(t, 48<<20).Mount(t, true)
	file := filepath.Join(dir, "metadata")
	config := faultConfig()
	config.MinFreePercent = 10
	ctx, h := newFaultHost(t, places{metadata: dir}, config, 64<<20, 2<<20)
	h.layer(ctx, t, "other", "", "other", 4<<20)
	require.NoError(t, h.prepare(ctx, "before", "other"))

	raw := thin.NewPool(h.control, h.config.Pool.Name)
	id := thin.MaxID
	var err error
	for ; err == nil; id-- {
		require.NoError(t, raw.CreateThin(id))
		if id%16 == 0 {
			err = h.prepare(ctx, fmt.Sprint("probe ", id), "other")
		}
	}
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	require.ErrorContains(t, err, "bytes of metadata left, less than the minimum of 10%")
	require.Equal(t, thin.ModeReadWrite, h.mode(t))
	for raw.CreateThin(id) == nil {
		id--
	}
	status, err := h.pool.Status(ctx)
	require.NoError(t, err)
	t.Log(status.String())
	require.Equal(t, thin.ModeReadOnly, status.Mode)

	check := func() {
		requireFault(t, h.prepare(ctx, "a", "other"), errdefs.ErrResourceExhausted, "a", "thinsnap pool extend --metadata SIZE")
		h.requireContent(ctx, t, "other", "other", 4<<20)
		_, err := h.Mounts(ctx, "before")
		require.NoError(t, err)
		_, err = h.Usage(ctx, "before")
		require.NoError(t, err)
	}
	check()
	// A daemon can start with full metadata.
	require.NoError(t, h.Close())
	require.NoError(t, h.open(ctx, faultConfig()))
	check()
	require.NoError(t, h.Remove(ctx, "before"))
	require.Less(t, took(func() { require.NoError(t, h.Cleanup(ctx)) }), quick)

	h.repairPool(ctx, t, func() {
		m := repair.Metadata{File: file, BlockBytes: uint64(h.config.Pool.BlockSize), DataBytes: 64 << 20, TransactionID: status.TransactionID, Used: true}
		plan, err := m.Plan(ctx, 16<<20)
		require.NoError(t, err)
		outcome, err := plan.Do(ctx)
		require.NoError(t, err)
		require.Empty(t, outcome.Losses)
		require.True(t, outcome.Compared)
	})
	require.NoError(t, h.prepare(ctx, "a", "other"))
	require.NoError(t, h.Cleanup(ctx))
	h.requireContent(ctx, t, "other", "other", 4<<20)
}

// TestKernelMetadataHeals extends full metadata while a container runs, by a command or by the extender.
// Everything then continues.
func TestKernelMetadataHeals(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	for _, byItself := range []bool{false, true} {
		t.Run(fmt.Sprint("by itself: ", byItself), func(t *testing.T) {
			ctx, h := newFaultHost(t, places{}, faultConfig(), 64<<20, 2<<20)
			h.layer(ctx, t, "other", "", "other", 4<<20)
			require.NoError(t, h.prepare(ctx, "running", "other"))
			running := h.mount(ctx, t, "running")
			raw := thin.NewPool(h.control, h.config.Pool.Name)
			id := thin.MaxID
			for raw.CreateThin(id) == nil {
				id--
			}
			status, err := h.pool.Status(ctx)
			require.NoError(t, err)
			require.True(t, status.MetadataFull(), status.String())
			if byItself {
				extending, cancel := context.WithCancel(ctx)
				ended := make(chan error)
				events, err := h.control.Events()
				require.NoError(t, err)
				extender := autoextend.New("fault", h.pool, pool.Growth{Threshold: 80, Percent: 100})
				go func() { ended <- extender.Run(extending, events) }()
				require.Eventually(t, func() bool {
					status, err := h.pool.Status(ctx)
					return err == nil && status.Mode == thin.ModeReadWrite && status.Metadata.Total >= 4<<20
				}, time.Minute, 10*time.Millisecond)
				cancel()
				require.NoError(t, errors.Join(<-ended, events.Close()))
			} else {
				require.NoError(t, h.pool.Extend(ctx, 0, 8<<20))
			}
			require.Equal(t, thin.ModeReadWrite, h.mode(t))
			require.NoError(t, h.prepare(ctx, "after", "other"))
			require.NoError(t, overwrite(filepath.Join(running, "new"), bytes.Repeat([]byte("n"), 1<<20)))
		})
	}
}

// TestKernelDamagedPoolMetadata loads a pool whose metadata has a superblock with a wrong checksum.
func TestKernelDamagedPoolMetadata(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "metadata")
	ctx, h := newFaultHost(t, places{metadata: dir}, faultConfig(), 64<<20, 4<<20)
	h.layer(ctx, t, "other", "", "other", 4<<20)
	require.NoError(t, h.Close())
	require.NoError(t, h.pool.Close(ctx))
	good, err := os.ReadFile(file)
	require.NoError(t, err)
	bad := bytes.Clone(good)
	bad[100] ^= 0xff
	require.NoError(t, os.WriteFile(file, bad, 0o600))

	h.Snapshotter = nil
	err = h.open(ctx, faultConfig())
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
	require.ErrorContains(t, err, file)
	require.ErrorContains(t, err, "thinsnap pool repair")
	require.NoError(t, h.store.Close())
	after, err := os.ReadFile(file)
	require.NoError(t, err)
	require.True(t, bytes.Equal(bad, after), "nothing was changed")

	require.NoError(t, os.WriteFile(file, good, 0o600))
	require.NoError(t, h.open(ctx, faultConfig()))
	h.requireContent(ctx, t, "other", "other", 4<<20)
}

// TestKernelWrongPool replaces the pool's files with those of another pool.
func TestKernelWrongPool(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	var dirs []string
	var hosts []*host
	var ctx context.Context
	for range 2 {
		dir := t.TempDir()
		var h *host
		ctx, h = newFaultHost(t, places{data: dir, metadata: dir}, faultConfig(), 64<<20, 4<<20)
		h.layer(ctx, t, "layer", "", filepath.Base(dir), 1<<20)
		require.NoError(t, h.Close())
		require.NoError(t, h.pool.Close(ctx))
		dirs, hosts = append(dirs, dir), append(hosts, h)
	}
	for _, name := range []string{"data", "metadata"} {
		own, other := filepath.Join(dirs[0], name), filepath.Join(dirs[1], name)
		require.NoError(t, os.Rename(own, own+".own"))
		require.NoError(t, os.Link(other, own))
	}
	err := hosts[0].open(ctx, faultConfig())
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "nothing was changed")
	require.NoError(t, hosts[0].pool.Close(ctx))
	require.NoError(t, hosts[0].store.Close())
	for _, name := range []string{"data", "metadata"} {
		own := filepath.Join(dirs[0], name)
		require.NoError(t, os.Rename(own+".own", own))
	}
	for i, h := range hosts {
		require.NoError(t, h.open(ctx, faultConfig()))
		h.requireContent(ctx, t, "layer", filepath.Base(dirs[i]), 1<<20)
		require.NoError(t, h.Close())
		require.NoError(t, h.pool.Close(ctx))
	}
}
