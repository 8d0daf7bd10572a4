package snapshotter_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/faulty"
	"github.com/thinsnap/thinsnap/metadata"
)

// TestKernelFullStore fills the disk of the store.
func TestKernelFullStore(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	root := faulty.New(t, 24<<20).Mount(t, true)
	ctx, h := newFaultHost(t, places{root: root}, faultConfig(), 64<<20, 4<<20)
	h.layer(ctx, t, "other", "", "other", 1<<20)
	filler := fillDisk(t, root, 0)

	// At first the store has free pages of its own.
	large := map[string]string{"containerd.io/snapshot/large": strings.Repeat("l", 60<<10)}
	var err error
	last := ""
	for i := 0; err == nil && i < 100; i++ {
		last = fmt.Sprint("a", i)
		_, err = h.Prepare(ctx, last, "other", snapshots.WithLabels(large))
	}
	requireFault(t, err, errdefs.ErrResourceExhausted, last, "make room on its disk")
	require.ErrorContains(t, err, filepath.Join(root, "metadata.db"))
	_, err = h.Stat(ctx, last)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.Less(t, took(func() { require.NoError(t, h.Cleanup(ctx)) }), quick)

	// A daemon can start while that disk is full.
	require.NoError(t, h.Close())
	require.NoError(t, h.open(ctx, faultConfig()))
	_, err = h.Stat(ctx, "other")
	require.NoError(t, err)

	require.NoError(t, os.Remove(filler))
	_, err = h.Prepare(ctx, last, "other", snapshots.WithLabels(large))
	require.NoError(t, err)
	h.requireContent(ctx, t, "other", "other", 1<<20)
}

// TestKernelFaultyStore makes the disk of the store fail.
func TestKernelFaultyStore(t *testing.T) {
	for name, fail := range map[string]func(*faulty.Device, testing.TB){
		"reads and writes": (*faulty.Device).Fail,
		"writes":           (*faulty.Device).FailWrites,
	} {
		t.Run(name, func(t *testing.T) {
			dmtest.RequireKernel(t)
			dmtest.NoLeaks(t)
			disk := faulty.New(t, 24<<20)
			root := disk.Mount(t, false)
			ctx, h := newFaultHost(t, places{root: root}, faultConfig(), 64<<20, 4<<20)
			h.layer(ctx, t, "other", "", "other", 1<<20)
			require.NoError(t, h.prepare(ctx, "before", "other"))
			before := h.mount(ctx, t, "before")
			fail(disk, t)

			var err error
			require.Less(t, took(func() { err = h.prepare(ctx, "a", "other") }), quick)
			requireFault(t, err, errdefs.ErrUnavailable, "a", "the disk is healthy")
			require.ErrorContains(t, err, filepath.Join(root, "metadata.db"))
			require.ErrorIs(t, h.Remove(ctx, "before"), errdefs.ErrUnavailable)
			require.ErrorIs(t, h.Commit(ctx, "layer", "before"), errdefs.ErrUnavailable)
			// Containers continue.
			require.NoError(t, overwrite(filepath.Join(before, "more"), []byte("more")))
			require.Less(t, took(func() { _ = h.Close() }), 3*quick)

			disk.Heal(t)
			// The kernel may report the failed writes to the first start.
			if err := h.open(ctx, faultConfig()); err != nil {
				t.Log(err)
				require.ErrorIs(t, err, unix.EIO)
				require.NoError(t, h.open(ctx, faultConfig()))
			}
			require.NoError(t, h.prepare(ctx, "b", "other"))
			require.NoError(t, h.Commit(ctx, "layer", "before"))
			require.NoError(t, h.Cleanup(ctx))
			h.requireContent(ctx, t, "other", "other", 1<<20)
			problems, err := h.store.Check(ctx)
			require.NoError(t, err)
			require.Empty(t, problems)
		})
	}
}

// TestKernelStartOnABadRoot starts with a root that cannot be written.
func TestKernelStartOnABadRoot(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	disk := faulty.New(t, 24<<20)
	root := disk.Mount(t, true)
	store := filepath.Join(root, "metadata.db")

	filler := fillDisk(t, root, 0)
	_, err := metadata.Open(store, metadata.Options{})
	require.ErrorIs(t, err, unix.ENOSPC)
	require.ErrorContains(t, err, store)
	require.NoError(t, os.Remove(filler))

	ctx, h := newFaultHost(t, places{root: root}, faultConfig(), 64<<20, 4<<20)
	h.layer(ctx, t, "other", "", "other", 1<<20)
	require.NoError(t, h.Close())
	readOnly(t, disk, root, true)
	h.Snapshotter = nil
	err = h.open(ctx, faultConfig())
	require.ErrorIs(t, err, unix.EROFS)
	require.ErrorContains(t, err, store)
	readOnly(t, disk, root, false)
	require.NoError(t, h.open(ctx, faultConfig()))
	h.requireContent(ctx, t, "other", "other", 1<<20)
}

func readOnly(t *testing.T, disk *faulty.Device, dir string, is bool) {
	t.Helper()
	flags := uintptr(unix.MS_REMOUNT | unix.MS_NOATIME)
	if is {
		flags |= unix.MS_RDONLY
	}
	require.NoError(t, unix.Mount(disk.Path(), dir, "", flags, ""))
}

// TestKernelDamagedStore starts with a damaged store.
func TestKernelDamagedStore(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	ctx, h := newFaultHost(t, places{}, faultConfig(), 64<<20, 4<<20)
	h.layer(ctx, t, "other", "", "other", 1<<20)
	require.NoError(t, h.Close())
	file := filepath.Join(h.root, "metadata.db")
	good, err := os.ReadFile(file)
	require.NoError(t, err)
	page := os.Getpagesize()
	for name, damage := range map[string]func(b []byte) []byte{
		"both meta pages": func(b []byte) []byte { copy(b[:64], make([]byte, 64)); copy(b[page:], make([]byte, 64)); return b },
		"cut short":       func(b []byte) []byte { return b[:page*2] },
		"empty":           func([]byte) []byte { return nil },
		"zeroes":          func(b []byte) []byte { return make([]byte, len(b)) },
	} {
		t.Run(name, func(t *testing.T) {
			bad := damage(bytes.Clone(good))
			require.NoError(t, os.WriteFile(file, bad, 0o600))
			h.Snapshotter = nil
			err := h.open(ctx, faultConfig())
			require.ErrorIs(t, err, metadata.ErrCorrupt)
			require.ErrorContains(t, err, file)
			after, err := os.ReadFile(file)
			require.NoError(t, err)
			require.True(t, bytes.Equal(bad, after), "nothing was changed")
		})
	}
	require.NoError(t, os.WriteFile(file, good, 0o600))
	require.NoError(t, h.open(ctx, faultConfig()))
	h.requireContent(ctx, t, "other", "other", 1<<20)
}
