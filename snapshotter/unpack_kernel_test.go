package snapshotter_test

import (
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
)

// TestKernelUnpackAfterARestart: after the pool left the kernel, only two kinds of unpacks are whole: those
// that were never written to, and those that were closed at an orderly stop.
func TestKernelUnpackAfterARestart(t *testing.T) {
	config := filesystems[filesystem.Ext4]
	ctx, h := newTestHost(t, config)
	h.layer(ctx, t, "layer", "", "l", 1<<20)
	key := unpackKeyOf("interrupted")
	mounts, err := h.Prepare(ctx, key, "layer")
	require.NoError(t, err)
	// restart removes the pool from the kernel. A device that is open at the stop is not checkpointed.
	restart := func(open bool) {
		t.Helper()
		path := os.DevNull
		if open {
			path = mounts[0].Source
		}
		held, err := os.Open(path)
		require.NoError(t, err)
		require.NoError(t, h.Close())
		require.NoError(t, held.Close())
		require.NoError(t, h.pool.Close(ctx))
		require.NoError(t, h.open(ctx, config))
	}
	usable := func(name, content string) {
		t.Helper()
		mounts, err = h.Mounts(ctx, key)
		require.NoError(t, err)
		require.Subset(t, mounts[0].Options, []string{"noload", "nobarrier"})
		mounted(t, mounts, func(dir string) { require.Equal(t, content, read(t, dir, name)) })
	}
	restart(true)
	usable("file", repeated("l", 1<<20)) // never written to

	mounted(t, mounts, func(dir string) { write(t, dir, "more", "more") })
	restart(false)
	usable("more", "more")
	restart(false)
	usable("more", "more")
	require.NoError(t, h.Commit(ctx, "whole", key))
	h.requireContent(ctx, t, "whole", "l", 1<<20)

	mounts, err = h.Prepare(ctx, key, "whole")
	require.NoError(t, err)
	restart(false)
	usable("more", "more")
	mounted(t, mounts, func(dir string) { write(t, dir, "more", "even more") })
	restart(true)
	for range 2 {
		_, err = h.Mounts(ctx, key)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorIs(t, h.Commit(ctx, "part", key), errdefs.ErrFailedPrecondition)
	}
	require.NoError(t, h.Remove(ctx, key))
	require.NoError(t, h.Cleanup(ctx))
}
