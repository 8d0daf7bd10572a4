package provision

import (
	"maps"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
)

func TestEachConfiguredModeIsImplemented(t *testing.T) {
	require.ElementsMatch(t, config.Modes(), slices.Collect(maps.Keys(modes())))
}

// TestUnknownMode: a newer thinsnap made the pool.
func TestUnknownMode(t *testing.T) {
	store, err := metadata.Open(filepath.Join(t.TempDir(), "metadata.db"), metadata.Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, store.Close()) }()
	rec := metadata.PoolRecord{ID: "i", Mode: "ram", Name: "p", Complete: true}
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error { return tx.SetPool(rec) }))
	_, err = Read(t.Context(), store)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	require.ErrorIs(t, Destroy(t.Context(), store, nil), errdefs.ErrNotImplemented)
	_, err = Open(t.Context(), store, nil, config.Default())
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "another pool in the configuration")
	will, _ := Destruction(rec, config.Default())
	require.Contains(t, will, `no pool mode "ram"`)
}
