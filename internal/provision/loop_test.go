package provision_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/provision"
	"github.com/thinsnap/thinsnap/metadata"
)

func TestPlanOfALoopPool(t *testing.T) {
	c := config.Default()
	c.Root, c.Pool.Name = t.TempDir(), "p"
	c.Pool.Loop.DataSize, c.Pool.Loop.MetadataSize = 1<<30, 8<<20
	dir := filepath.Join(c.Root, "pool")
	want := []string{"fallocate --length 8388608 " + dir + "/metadata", "fallocate --length 1073741824 " + dir + "/data"}
	lines, err := provision.Plan(t.Context(), nil, c)
	require.NoError(t, err)
	require.Equal(t, want, lines)
	require.NoDirExists(t, dir)

	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "data"), nil, 0o600))
	_, err = provision.Plan(t.Context(), nil, c)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "files of an unrecorded pool")

	store, err := metadata.Open(filepath.Join(c.Root, "metadata.db"), metadata.Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, store.Close()) }()
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.SetPool(metadata.PoolRecord{
			ID: "i", Mode: metadata.ModeLoop, Name: "p", BlockSize: 64 << 10,
			Loop: metadata.LoopFiles{DataFile: dir + "/data", MetadataFile: dir + "/metadata"},
		})
	}))
	lines, err = provision.Plan(t.Context(), store, c)
	require.NoError(t, err, "a pool that a crash left incomplete")
	require.Equal(t, want, lines)
	c.Pool.BlockSize *= 2
	_, err = provision.Plan(t.Context(), store, c)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
}
