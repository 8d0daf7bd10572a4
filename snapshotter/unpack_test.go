package snapshotter_test

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

const (
	chainID   = "sha256:2edcec3590a4ec7f40cf0743c15d78fb39d8326bc029073b41ef9727da6c851f"
	unpackKey = "default/7/extract-351268354-kWmC " + chainID
)

// unpackKeyOf returns the key of an unpack that is unique for the name.
func unpackKeyOf(name string) string { return "default/1/extract-" + name + " " + chainID }

func (b *bench) options(t *testing.T, key string) []string {
	t.Helper()
	mounts, err := b.Mounts(t.Context(), key)
	require.NoError(t, err)
	return mounts[0].Options
}

func TestUnpackingNeedsNoJournal(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.prepare(t, unpackKey, "")
	require.Subset(t, b.options(t, unpackKey), []string{"rw", "noload", "nobarrier"})
	require.NoError(t, b.Commit(t.Context(), "layer", unpackKey))
	mounts, err := b.View(t.Context(), unpackKey, "layer")
	require.NoError(t, err)
	require.NotContains(t, mounts[0].Options, "noload")

	for name, change := range map[string]func(*bench){
		"an option about the journal": func(b *bench) { b.config.MountOptions = []string{"noatime", "data=ordered"} },
		"another file system":         func(b *bench) { b.config.Filesystem = filesystem.XFS; b.config.BaseBytes = filesystem.MinXFS },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, fakeConfig())
			change(b)
			b.restart(t, false)
			b.prepare(t, unpackKey, "")
			require.NotContains(t, b.options(t, unpackKey), "noload")
		})
	}
}

// TestOnlyUnpacksHaveNoJournal has keys that clients really use.
func TestOnlyUnpacksHaveNoJournal(t *testing.T) {
	for _, key := range []string{
		// pkg/rootfs and core/unpack, identical in containerd 1.6 to 2.4
		unpackKey,
		"k8s.io/1234/extract-3--_A_ " + chainID,
		"moby/1/extract-999999999-a_-z sha512:" + strings.Repeat("0f", 64),
		// BuildKit
		"buildkit/18/extract-0kdx5iaryyt1inn5yrc1bz3gf " + chainID,
	} {
		t.Run(key, func(t *testing.T) {
			b := newBench(t, fakeConfig())
			b.prepare(t, key, "")
			require.Subset(t, b.options(t, key), []string{"rw", "noload", "nobarrier"})
		})
	}
	for _, key := range []string{
		"default/8/container", "extract", "default/9/extracted", "default/7/extract-text-snapshot", "k8s.io/12/extract-logs",
		"extract-logs", "extract-351268354-kWmC " + chainID, "default/x/extract-351268354-kWmC " + chainID,
		"/7/extract-351268354-kWmC " + chainID, "default/7/x/extract-351268354-kWmC " + chainID,
		"default/7/extract- " + chainID, "default/7/extract-351268354-kWmC", "default/7/extract-351268354-kWmC ",
		"default/7/extract-351268354-kWmC sha256:1234", "default/7/extract-351268354-kWmC  " + chainID,
		"default/7/extract-351268354-kWmC " + chainID + " ", "default/7/view-extract-1 " + chainID,
		"default/7/extract-351268354-kWmC sha256:" + strings.Repeat("X", 64), "default/7/" + chainID,
	} {
		t.Run(key, func(t *testing.T) {
			b := newBench(t, fakeConfig())
			b.prepare(t, key, "")
			require.NotContains(t, b.options(t, key), "noload")
			b.restart(t, true)
			require.NotEmpty(t, b.options(t, key), "a restart of the machine does not matter")
			require.NoError(t, b.Commit(t.Context(), "layer", key))
		})
	}
}

// interrupt writes to the volume of an unpack, and crashes the machine while it is mounted.
func (b *bench) interrupt(t *testing.T, key string) {
	t.Helper()
	mounts, err := b.Mounts(t.Context(), key)
	require.NoError(t, err)
	require.NoError(t, b.pool.Write(mounts[0].Source, "a part"))
	require.NoError(t, b.pool.Open(mounts[0].Source, 1))
	b.restart(t, true)
}

func (b *bench) requireInterrupted(t *testing.T, key string) {
	t.Helper()
	for range 2 { // the second call must fail too
		_, err := b.Mounts(t.Context(), key)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	}
	err := b.Commit(t.Context(), "interrupted", key)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "unpack the layer again")
}

// TestUnpackingInterrupted: only a crash of the machine makes an unpack unusable, and only until the layer
// is unpacked again.
func TestUnpackingInterrupted(t *testing.T) {
	b := newBench(t, fakeConfig())
	dev := b.prepare(t, unpackKey, "")
	require.NoError(t, b.pool.Open(dev, 1))
	b.restart(t, false)
	require.NotEmpty(t, b.options(t, unpackKey), "the daemon's crash does not matter")
	require.NoError(t, b.pool.Open(dev, -1))
	require.NoError(t, b.Commit(t.Context(), "layer", unpackKey))

	b.prepare(t, unpackKey, "layer")
	b.interrupt(t, unpackKey)
	b.requireInterrupted(t, unpackKey)
	b.restart(t, false)
	b.requireInterrupted(t, unpackKey)
	require.NoError(t, b.Remove(t.Context(), unpackKey))
	b.prepare(t, unpackKey, "layer")
	require.NoError(t, b.Commit(t.Context(), "layer-2", unpackKey))
}

// TestUnpackingInterruptedAndMeasured: a volume that was activated to be measured proves nothing about a
// crash.
func TestUnpackingInterruptedAndMeasured(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.prepare(t, unpackKey, "")
	id := b.volume(t, unpackKey)
	b.interrupt(t, unpackKey)
	ctx, cancel := context.WithCancel(t.Context())
	b.during("Activate", func() error { cancel(); return nil })
	_, err := b.Usage(ctx, unpackKey)
	require.ErrorIs(t, err, context.Canceled)
	_, err = b.pool.Lookup(t.Context(), id)
	require.ErrorIs(t, err, devmapper.ErrNotFound, "after the caller gave up, the volume is inactive again")
	b.requireInterrupted(t, unpackKey)

	_, err = b.pool.Activate(t.Context(), id, b.config.BaseBytes, true)
	require.NoError(t, err)
	b.restart(t, false) // as if killed during the measurement
	b.requireInterrupted(t, unpackKey)
}

// TestUnpackNotWrittenTo: an unpack that was not written to equals its origin, whenever the machine went
// down. Its key stays usable.
func TestUnpackNotWrittenTo(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	for i, parent := range []string{"", "layer"} {
		key := unpackKeyOf(strconv.Itoa(i))
		b.prepare(t, key, parent)
		// As after a kill between the record and the activation.
		_, err := b.Mounts(t.Context(), key)
		require.NoError(t, err)
		b.restart(t, true)
		require.Subset(t, b.options(t, key), []string{"rw", "noload", "nobarrier"})
		b.restart(t, true)
		require.NoError(t, b.Commit(t.Context(), "unpacked-"+key, key))
		require.Equal(t, map[string]string{"layer": "content"}[parent], b.content(t, "unpacked-"+key))
	}
}

// TestUnpackAfterAnOrderlyStop: an unpack that was flushed and closed at a stop is whole after a reboot,
// unless it was written to after the stop.
func TestUnpackAfterAnOrderlyStop(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0
	b := newBench(t, config)
	b.layer(t, "layer", "", "content")
	require.NoError(t, b.pool.Write(b.prepare(t, unpackKey, "layer"), "unpacked"))
	for range 2 {
		b.restart(t, true)
		require.NotEmpty(t, b.options(t, unpackKey))
	}
	b.restart(t, true)
	require.NoError(t, b.Commit(t.Context(), "layer-2", unpackKey))
	require.Equal(t, "unpacked", b.content(t, "layer-2"))
	b.requireNoLeftovers(t)

	stopped := func(t *testing.T, f func(dev string)) {
		t.Helper()
		require.NoError(t, b.pool.Write(b.prepare(t, unpackKey, "layer"), "unpacked"))
		b.restart(t, true)
		mounts, err := b.Mounts(t.Context(), unpackKey)
		require.NoError(t, err)
		f(mounts[0].Source)
		b.requireInterrupted(t, unpackKey)
		require.NoError(t, b.Remove(t.Context(), unpackKey))
	}
	t.Run("written to since", func(t *testing.T) {
		stopped(t, func(dev string) {
			require.NoError(t, b.Close())
			require.NoError(t, b.pool.Write(dev, "more"))
			b.pool.Crash()
			b.openStore(t)
			require.NoError(t, b.start(t))
		})
	})
	t.Run("in use at the stop", func(t *testing.T) {
		stopped(t, func(dev string) {
			require.NoError(t, b.pool.Write(dev, "more"))
			require.NoError(t, b.pool.Open(dev, 1))
			b.restart(t, true)
		})
	})
	t.Run("not flushed", func(t *testing.T) {
		stopped(t, func(dev string) {
			require.NoError(t, b.pool.Write(dev, "more"))
			b.during("Flush", func() error { return unix.EIO })
			b.restart(t, true)
		})
	})
	t.Run("no snapshot", func(t *testing.T) {
		stopped(t, func(dev string) {
			require.NoError(t, b.pool.Write(dev, "more"))
			b.during("CreateSnap", func() error { return unix.EIO })
			b.restart(t, true)
		})
	})
}

// TestUnpackThatCannotBeRead: with unreadable metadata it is unknown whether an unpack is whole.
func TestUnpackThatCannotBeRead(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.prepare(t, unpackKey, "")
	b.restart(t, true)
	b.during("Writes", func() error { return unix.EIO })
	_, err := b.Mounts(t.Context(), unpackKey)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.NotEmpty(t, b.options(t, unpackKey))
}

// TestMountsOnError: the operator, and not the superblock of an ext4, decides what the host does on an
// error. A virtual machine can have written that superblock.
func TestMountsOnError(t *testing.T) {
	config := fakeConfig()
	config.MountOptions = []string{"errors=continue"}
	b := newBench(t, config)
	b.layer(t, "layer", "", "content")
	for _, key := range []string{"container", unpackKey} {
		b.prepare(t, key, "layer")
	}
	_, err := b.View(t.Context(), "view", "layer")
	require.NoError(t, err)
	for _, key := range []string{"container", unpackKey, "view"} {
		options := b.options(t, key)
		ours, theirs := slices.Index(options, "errors=remount-ro"), slices.Index(options, "errors=continue")
		require.GreaterOrEqual(t, ours, 0, "%s: %v", key, options)
		require.Greater(t, theirs, ours, "%s: %v", key, options)
	}
}

// TestUnpackInAReopenedPool: the pool was removed and reopened during an unpack, as when its disk is
// detached. Unflushed writes may be lost.
func TestUnpackInAReopenedPool(t *testing.T) {
	var gone atomic.Bool
	config := fakeConfig()
	config.Reopen = func(ctx context.Context, verify func(context.Context) error) error {
		gone.Store(false)
		return verify(ctx)
	}
	b := newBench(t, config)
	b.layer(t, "layer", "", "content")
	dev := b.prepare(t, unpackKey, "layer")
	require.NoError(t, b.pool.Write(dev, "unpacked"))
	b.pool.SetFault(func(string, thin.ID) error {
		if gone.Load() {
			return pool.ErrNotActive
		}
		return nil
	})
	b.pool.Crash()
	gone.Store(true)
	require.ErrorIs(t, b.Commit(t.Context(), "layer 2", unpackKey), errdefs.ErrFailedPrecondition)
}
