package snapshotter_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// TestPanicInACopy: the original is resumed and the copy deleted.
func TestPanicInACopy(t *testing.T) {
	for _, method := range []string{"CreateSnap", "Activate"} {
		for name, copyIt := range map[string]func(b *bench){
			"freeze": func(b *bench) { _, _ = b.Freeze(t.Context(), "a") },
			"commit": func(b *bench) { _ = b.Commit(t.Context(), "layer", "a") },
			"fork":   func(b *bench) { _, _ = b.Prepare(t.Context(), "fork", "", b.issue(t, "a")) },
		} {
			t.Run(name+", "+method, func(t *testing.T) {
				b := newBench(t, fakeConfig())
				device := b.prepare(t, "a", "")
				require.NoError(t, b.pool.Open(device, 1))
				b.during(method, func() error { panic("broken") })
				require.Panics(t, func() { copyIt(b) })
				require.NoError(t, b.Cleanup(t.Context()))
				vol, err := b.pool.Lookup(t.Context(), b.volume(t, "a"))
				require.NoError(t, err)
				require.False(t, vol.Suspended)
				require.NoError(t, b.pool.Write(device, "it is writable"))
				require.NoError(t, b.pool.Open(device, -1))
				b.requireNoLeftovers(t)
				b.freeze(t, "a").Release(t.Context())
			})
		}
	}
}

// TestCopyIsDeletedBeforeItsOriginal: a discard does not free blocks that the original shares with a copy.
func TestCopyIsDeletedBeforeItsOriginal(t *testing.T) {
	config := fakeConfig()
	config.Discard = true
	b := newBench(t, config)
	b.prepare(t, "a", "")
	original, frozen := b.volume(t, "a"), b.freeze(t, "a")
	b.pool.SetFault(func(method string, id thin.ID) error {
		if method == "Discard" && id == original {
			assert.NotContains(t, b.pool.IDs(), frozen.ID)
		}
		return nil
	})
	require.NoError(t, b.Remove(t.Context(), "a"))
	require.NoError(t, b.Cleanup(t.Context()))
	require.Contains(t, b.pool.IDs(), original)
	b.requireFrozen(t, frozen, "")
	frozen.Release(t.Context())
	require.NoError(t, b.Cleanup(t.Context()))
	require.NotContains(t, b.pool.IDs(), original)
	b.requireNoLeftovers(t)
}
