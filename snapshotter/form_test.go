package snapshotter_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

func TestPlanOfALoopPool(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pool")
	config := snapshotter.LoopConfig{Dir: dir, Name: "p", BlockBytes: 64 << 10, DataBytes: 1 << 30, MetadataBytes: 8 << 20}
	want := []string{"truncate --size 1073741824 " + dir + "/data", "truncate --size 8388608 " + dir + "/metadata"}
	lines, err := snapshotter.PlanLoopPool(t.Context(), nil, config)
	require.NoError(t, err)
	require.Equal(t, want, lines)
	require.NoDirExists(t, dir)

	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "data"), nil, 0o600))
	_, err = snapshotter.PlanLoopPool(t.Context(), nil, config)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "files that the store knows nothing of")

	store, err := metadata.Open(filepath.Join(t.TempDir(), "metadata.db"), metadata.Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, store.Close()) }()
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.SetPool(metadata.PoolRecord{
			ID: "i", Mode: snapshotter.ModeLoop, Name: "p", BlockSize: 64 << 10,
			Loop: metadata.LoopFiles{DataFile: dir + "/data", MetadataFile: dir + "/metadata"},
		})
	}))
	lines, err = snapshotter.PlanLoopPool(t.Context(), store, config)
	require.NoError(t, err, "which was begun before a crash")
	require.Equal(t, want, lines)
	config.BlockBytes *= 2
	_, err = snapshotter.PlanLoopPool(t.Context(), store, config)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
}
