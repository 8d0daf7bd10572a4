package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// TestRootOfAnAdoption: nothing uses a root's store during an unfinished adoption.
func TestRootOfAnAdoption(t *testing.T) {
	c := config.Default()
	c.Root = t.TempDir()
	require.NoError(t, os.Chmod(c.Root, 0o700))
	calls := map[string]func() error{
		"Open":       func() error { _, err := Open(t.Context(), c); return err },
		"CreatePool": func() error { _, err := CreatePool(t.Context(), c); return err },
	}
	journal := filepath.Join(rootdir.Adoption(c.Root), "journal.json")
	require.NoError(t, os.Mkdir(filepath.Dir(journal), 0o700))
	require.NoError(t, os.WriteFile(journal, []byte("{}"), 0o600))
	for name, call := range calls {
		err := call()
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, name)
		require.ErrorContains(t, err, "--undo", name)
		require.True(t, IsFinal(err), name)
	}
	require.NoError(t, os.Remove(journal))

	running, err := os.Open(c.Root)
	require.NoError(t, err)
	require.NoError(t, unix.Flock(int(running.Fd()), unix.LOCK_EX))
	for name, call := range calls {
		err := call()
		require.ErrorIs(t, err, errdefs.ErrUnavailable, name)
		require.False(t, IsFinal(err), "%s: it can be retried after the adoption", name)
	}
	require.NoFileExists(t, rootdir.Store(c.Root))
	require.NoError(t, running.Close())

	// With a store.
	store, err := metadata.Open(rootdir.Store(c.Root), metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, store.Close())
	before, err := os.ReadFile(rootdir.Store(c.Root))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(journal, []byte("{}"), 0o600))
	require.ErrorContains(t, DestroyPool(t.Context(), c), "--undo")
	require.ErrorContains(t, rebuild(t.Context(), c, []check.Finding{{Kind: check.KindStore, Repair: "x"}}), "--undo")
	after, err := os.ReadFile(rootdir.Store(c.Root))
	require.NoError(t, err)
	require.Equal(t, before, after)
}
