package unixsocket

import (
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// socketPath returns the path of a socket in a directory that does not exist yet.
func socketPath(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "run", "s.sock")
}

// leave creates a stale socket, as a killed process leaves it.
func leave(t *testing.T, path string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
}

func TestListenModes(t *testing.T) {
	path := socketPath(t)
	l, err := Listen(t.Context(), path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	info, err = os.Stat(filepath.Dir(path))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())

	require.NoError(t, l.Close())
	require.NoFileExists(t, path)
}

func TestListenReplacesStaleSocket(t *testing.T) {
	path := socketPath(t)
	leave(t, path)
	l, err := Listen(t.Context(), path)
	require.NoError(t, err)
	require.NoError(t, l.Close())
}

func TestListenRefusesSocketInUse(t *testing.T) {
	path := socketPath(t)
	l, err := Listen(t.Context(), path)
	require.NoError(t, err)
	_, err = Listen(t.Context(), path)
	require.ErrorIs(t, err, ErrInUse)
	require.ErrorContains(t, err, path)
	conn, err := net.Dial("unix", path)
	require.NoError(t, err, "the refused call must leave the socket alone")
	require.NoError(t, conn.Close())
	require.NoError(t, l.Close())
}

func TestListenRefusesOtherFile(t *testing.T) {
	path := socketPath(t)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
	require.NoError(t, os.WriteFile(path, []byte("mine"), 0o600))
	_, err := Listen(t.Context(), path)
	require.ErrorContains(t, err, "not a socket")
	require.FileExists(t, path)
}

// TestListenTogether: of many that start on one stale socket exactly one gets it.
func TestListenTogether(t *testing.T) {
	path := socketPath(t)
	leave(t, path)
	results := make([]error, 16)
	listeners := make([]net.Listener, len(results))
	var group sync.WaitGroup
	for i := range results {
		group.Go(func() { listeners[i], results[i] = Listen(t.Context(), path) })
	}
	group.Wait()
	won := 0
	for i, err := range results {
		if err == nil {
			won++
			require.NoError(t, listeners[i].Close())
			continue
		}
		require.ErrorIs(t, err, ErrInUse)
	}
	require.Equal(t, 1, won)
}
