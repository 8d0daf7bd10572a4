package snapshotter_test

import (
	"context"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
)

const unpackKey = "default/7/extract-351268354-kWmC sha256:2fb8ea2ee4b4a0e2c4e7d6a1a3c8d1b7"

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
	for _, key := range []string{"default/8/container", "extract", "default/9/extracted"} {
		b.prepare(t, key, "")
		require.NotContains(t, b.options(t, key), "noload")
	}
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

// Only a crash of the machine spoils what is being unpacked, and only until it is
// unpacked again.
func TestUnpackingInterrupted(t *testing.T) {
	b := newBench(t, fakeConfig())
	dev := b.prepare(t, unpackKey, "")
	require.NoError(t, b.pool.Open(dev, 1))
	b.restart(t, false)
	require.NotEmpty(t, b.options(t, unpackKey), "the daemon's crash does not matter")
	require.NoError(t, b.pool.Open(dev, -1))
	require.NoError(t, b.Commit(t.Context(), "layer", unpackKey))

	b.prepare(t, unpackKey, "layer")
	b.restart(t, true)
	for range 2 { // to ask does not make it any better
		_, err := b.Mounts(t.Context(), unpackKey)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	}
	err := b.Commit(t.Context(), "layer-2", unpackKey)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "unpack the layer again")
	require.NoError(t, b.Remove(t.Context(), unpackKey))
	b.prepare(t, unpackKey, "layer")
	require.NoError(t, b.Commit(t.Context(), "layer-2", unpackKey))
}

// To be measured a volume is made active, which says nothing of the machine.
func TestUnpackingInterruptedAndMeasured(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.prepare(t, unpackKey, "")
	id := b.volume(t, unpackKey)
	refused := func() {
		t.Helper()
		_, err := b.Mounts(t.Context(), unpackKey)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorIs(t, b.Commit(t.Context(), "layer", unpackKey), errdefs.ErrFailedPrecondition)
	}
	b.restart(t, true)
	ctx, cancel := context.WithCancel(t.Context())
	b.during("Activate", func() error { cancel(); return nil })
	_, err := b.Usage(ctx, unpackKey)
	require.ErrorIs(t, err, context.Canceled)
	_, err = b.pool.Lookup(t.Context(), id)
	require.ErrorIs(t, err, devmapper.ErrNotFound, "the caller has gone, and the volume is inactive again")
	refused()

	_, err = b.pool.Activate(t.Context(), id, b.config.BaseBytes, true)
	require.NoError(t, err)
	b.restart(t, false) // as if it had been killed while it measured
	refused()
}
