package snapshotter_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// quick bounds the time of a refused operation: fullWait and a second, and some more on an emulated
// machine.
const quick = 15 * time.Second

// TestKernelFullDataDevice fills a pool through a mounted file system. The writes wait in the kernel until
// space is freed, and then complete without a restart.
func TestKernelFullDataDevice(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	noSpaceTimeout(t, "60")
	config := faultConfig()
	config.Spares = 2
	ctx, h := newFaultHost(t, places{}, config, 32<<20, 4<<20)
	h.layer(ctx, t, "other", "", "other", 2<<20)
	h.layer(ctx, t, "ballast", "", "ballast", 12<<20)
	require.NoError(t, h.prepare(ctx, "clean", "other"))
	require.NoError(t, h.prepare(ctx, unpackKeyOf("running"), ""))
	running := h.mount(ctx, t, unpackKeyOf("running"))
	block := bytes.Repeat([]byte("r"), 1<<20)
	require.NoError(t, overwrite(filepath.Join(running, "file"), block))
	require.NoError(t, h.prepare(ctx, "hog", ""))
	hog := h.mount(ctx, t, "hog")
	content := bytes.Repeat([]byte("h"), 20<<20)
	written := make(chan error, 1)
	go func() { written <- overwrite(filepath.Join(hog, "file"), content) }()
	h.awaitMode(t, thin.ModeOutOfDataSpace)

	// New snapshots are refused, even with a spare.
	for key, parent := range map[string]string{"a": "", "b": "other"} {
		requireFault(t, h.prepare(ctx, key, parent), errdefs.ErrResourceExhausted, key, "remove snapshots, or make the pool larger")
		_, err := h.Stat(ctx, key)
		require.ErrorIs(t, err, errdefs.ErrNotFound)
	}
	require.Eventually(t, func() bool { return h.Spares().Present == 0 }, 10*time.Second, 20*time.Millisecond)
	// Existing data can be read, and allocated blocks can be written.
	h.requireContent(ctx, t, "other", "other", 2<<20)
	require.NoError(t, overwrite(filepath.Join(running, "file"), bytes.ToUpper(block)))
	_, err := h.Mounts(ctx, "hog")
	require.NoError(t, err)
	for _, key := range []string{"hog", "other", "clean"} {
		_, err := h.Usage(ctx, key)
		require.NoError(t, err)
	}
	require.NoError(t, h.Commit(ctx, "nothing new", "clean"))
	// An operation that would wait in the kernel is refused.
	require.Less(t, took(func() { err = h.Commit(ctx, "hogged", "hog") }), quick)
	requireFault(t, err, errdefs.ErrResourceExhausted, "hog", "remove snapshots, or make the pool larger")
	select {
	case err := <-written:
		require.Fail(t, "the pool is not full", "%v", err)
	default:
	}

	require.NoError(t, h.Remove(ctx, "ballast"))
	require.Less(t, took(func() { require.NoError(t, h.Cleanup(ctx)) }), quick)
	require.NoError(t, <-written)
	h.awaitMode(t, thin.ModeReadWrite)
	require.NoError(t, h.prepare(ctx, "a", "other"))
	require.NoError(t, h.Commit(ctx, "hogged", "hog"))
	require.NoError(t, mount.UnmountAll(running, 0))
	require.NoError(t, h.Commit(ctx, "ran", unpackKeyOf("running")))
	h.requireContent(ctx, t, "hogged", "h", 20<<20)
	h.requireContent(ctx, t, "ran", "R", 1<<20)
	h.requireContent(ctx, t, "other", "other", 2<<20)
}

// TestKernelFullDataDeviceFailsWrites: if no space is freed, the kernel fails the writes after a timeout,
// or at once in a pool that does not queue. A client that unpacks a layer gets no error, but Commit does.
func TestKernelFullDataDeviceFailsWrites(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	noSpaceTimeout(t, "2")
	ctx, h := newFaultHost(t, places{}, faultConfig(), 24<<20, 4<<20)
	h.layer(ctx, t, "other", "", "other", 2<<20)
	h.layer(ctx, t, "ballast", "", "ballast", 8<<20)
	require.NoError(t, h.prepare(ctx, "container", "other"))
	require.NoError(t, h.prepare(ctx, unpackKeyOf("hog"), ""))
	mounts, err := h.Mounts(ctx, unpackKeyOf("hog"))
	require.NoError(t, err)
	mounted(t, mounts, func(dir string) { write(t, dir, "file", strings.Repeat("h", 20<<20)) })
	h.awaitMode(t, thin.ModeOutOfDataSpace)
	status, err := h.pool.Status(ctx)
	require.NoError(t, err)
	require.False(t, status.QueueIfNoSpace)

	require.Error(t, h.Commit(ctx, "hogged", unpackKeyOf("hog")))
	requireFault(t, h.prepare(ctx, "a", "other"), errdefs.ErrResourceExhausted, "a", "remove snapshots")
	h.requireContent(ctx, t, "other", "other", 2<<20)
	require.NoError(t, h.Remove(ctx, "ballast"))
	require.NoError(t, h.Cleanup(ctx))
	h.awaitMode(t, thin.ModeReadWrite)

	// Nothing is left to be written back, but the content is incomplete.
	requireFault(t, h.Commit(ctx, "hogged", unpackKeyOf("hog")), errdefs.ErrDataLoss, unpackKeyOf("hog"), "pull or build it again")
	require.NoError(t, h.Remove(ctx, unpackKeyOf("hog")))
	require.NoError(t, h.restart(ctx, faultConfig()))
	requireFault(t, h.Commit(ctx, "contained", "container"), errdefs.ErrDataLoss, "container", "pull or build it again")
	require.NoError(t, h.Remove(ctx, "container"))
	h.layer(ctx, t, "again", "other", "again", 4<<20)
	h.requireContent(ctx, t, "again", "again", 4<<20)
}

// keepInCache prevents the kernel from writing back by itself until the test ends, however little memory is
// free (Documentation/admin-guide/sysctl/vm.rst).
func keepInCache(t *testing.T) {
	t.Helper()
	const dir = "/proc/sys/vm/"
	for _, name := range []string{"dirty_ratio", "dirty_background_ratio", "dirty_writeback_centisecs"} {
		before, err := os.ReadFile(dir + name)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, os.WriteFile(dir+name, before, 0)) })
	}
	for name, value := range map[string]string{
		"dirty_bytes": "536870912", "dirty_background_bytes": "268435456", "dirty_writeback_centisecs": "0",
	} {
		require.NoError(t, os.WriteFile(dir+name, []byte(value), 0))
	}
}

// TestKernelStopOnAFullPool stops thinsnap while a Commit is stuck in the kernel.
func TestKernelStopOnAFullPool(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	noSpaceTimeout(t, "60")
	keepInCache(t)
	config := faultConfig()
	config.BaseBytes = 128 << 20 // an ext4 of small size writes back a file of half its size early
	ctx, h := newFaultHost(t, places{}, config, 24<<20, 4<<20)
	h.layer(ctx, t, "ballast", "", "ballast", 8<<20)
	require.NoError(t, h.prepare(ctx, "hog", ""))
	hog := h.mount(ctx, t, "hog")
	write(t, hog, "file", strings.Repeat("h", 20<<20))
	// The Commit writes back all of it.
	limited, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	require.ErrorIs(t, h.Commit(limited, "hogged", "hog"), context.DeadlineExceeded)
	h.awaitMode(t, thin.ModeOutOfDataSpace)
	require.Less(t, took(func() { require.NoError(t, h.Close()) }), 3*quick)

	// The next start succeeds, and can free space.
	require.NoError(t, h.open(ctx, config))
	require.NoError(t, h.Remove(ctx, "ballast"))
	require.NoError(t, h.Cleanup(ctx))
	// The stuck Commit ends soon.
	require.Eventually(t, func() bool { return h.Commit(ctx, "hogged", "hog") == nil }, quick, 100*time.Millisecond)
	h.requireContent(ctx, t, "hogged", "h", 20<<20)
}

// layer makes a committed snapshot with a file of the given size in bytes.
func (h *host) layer(ctx context.Context, t *testing.T, name, parent, content string, bytes int) {
	t.Helper()
	key := unpackKeyOf(name)
	mounts, err := h.Prepare(ctx, key, parent)
	require.NoError(t, err)
	mounted(t, mounts, func(dir string) { write(t, dir, "file", repeated(content, bytes)) })
	require.NoError(t, h.Commit(ctx, name, key))
}

func repeated(content string, bytes int) string {
	return strings.Repeat(content, bytes/len(content)+1)[:bytes]
}

// requireContent requires that a layer has the file of layer.
func (h *host) requireContent(ctx context.Context, t *testing.T, name, content string, bytes int) {
	t.Helper()
	mounts, err := h.View(ctx, "view of "+name, name)
	require.NoError(t, err)
	mounted(t, mounts, func(dir string) {
		same := read(t, dir, "file") == repeated(content, bytes)
		require.True(t, same, "the content of %s", name)
	})
	require.NoError(t, h.Remove(ctx, "view of "+name))
}

func (h *host) prepare(ctx context.Context, key, parent string) error {
	_, err := h.Prepare(ctx, key, parent)
	return err
}

// mount mounts an active snapshot until the end of the test.
func (h *host) mount(ctx context.Context, t *testing.T, key string) (dir string) {
	t.Helper()
	mounts, err := h.Mounts(ctx, key)
	require.NoError(t, err)
	dir = t.TempDir()
	require.NoError(t, mount.All(mounts, dir))
	t.Cleanup(func() { require.NoError(t, mount.UnmountAll(dir, 0)) })
	return dir
}

// overwrite writes a file in place, if it exists, and flushes it.
func overwrite(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(content, 0); err != nil {
		return err
	}
	return f.Sync()
}

func (h *host) awaitMode(t *testing.T, mode thin.Mode) {
	t.Helper()
	require.Eventually(t, func() bool { return h.mode(t) == mode }, 20*time.Second, 50*time.Millisecond, "mode %s", mode)
}

// requireFault requires that an error has a class, the name of its subject, and a remedy.
func requireFault(t *testing.T, err error, class error, key, remedy string) {
	t.Helper()
	require.ErrorIs(t, err, class)
	require.ErrorContains(t, err, `"`+key+`"`)
	require.ErrorContains(t, err, remedy)
}
