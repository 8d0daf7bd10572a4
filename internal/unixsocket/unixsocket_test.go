package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// socketPath returns the path of a socket in a directory that does not exist yet.
func socketPath(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "run", "s.sock")
}

// leave creates a stale socket, like a killed process.
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

// Of many processes that start on one stale socket, exactly one gets it.
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

// hold locks a file or a directory with flock(2) until the test ends.
func hold(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
}

// A user who can read a directory can lock it.
func TestListenWhileOthersLockTheDirectory(t *testing.T) {
	path := socketPath(t)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	hold(t, filepath.Dir(path))
	leave(t, path)
	l, err := Listen(t.Context(), path)
	require.NoError(t, err)
	require.NoError(t, l.Close())
}

func TestListenNamesTheHolderOfTheLock(t *testing.T) {
	path := socketPath(t)
	l, err := Listen(t.Context(), path)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	info, err := os.Stat(path + ".lock")
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), "others cannot open it")
	hold(t, path+".lock")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = Listen(ctx, path)
	require.ErrorIs(t, err, unix.EWOULDBLOCK)
	require.ErrorContains(t, err, fmt.Sprintf("held by process %d", os.Getpid()))
}

// A file of others in the lock's place is neither used nor followed.
func TestListenRefusesALockOfOthers(t *testing.T) {
	for name, place := range map[string]func(path string) error{
		"open to others": func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o644)) },
		"a pipe":         func(path string) error { return unix.Mkfifo(path, 0o600) },
		"a link":         func(path string) error { return os.Symlink(filepath.Join(filepath.Dir(path), "created"), path) },
		"of another user": func(path string) error {
			if os.Geteuid() != 0 {
				return os.Mkdir(path, 0o700)
			}
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, 65534, -1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := socketPath(t)
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
			require.NoError(t, place(path+".lock"))
			_, err := Listen(t.Context(), path)
			require.ErrorContains(t, err, path+".lock")
			require.NoFileExists(t, path)
			require.NoFileExists(t, filepath.Join(filepath.Dir(path), "created"))
		})
	}
}

func TestRestrictDirectories(t *testing.T) {
	path := socketPath(t)
	dir, other := filepath.Dir(path), filepath.Join(filepath.Dir(path), "other.sock")
	require.NoError(t, RestrictDirectories(path, other), "not there yet")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	require.NoError(t, os.Chmod(dir, 0o755))
	mode := func() os.FileMode {
		info, err := os.Stat(dir)
		require.NoError(t, err)
		return info.Mode().Perm()
	}
	for _, socket := range []string{path, other} {
		l, err := Listen(t.Context(), socket)
		require.NoError(t, err)
		defer l.Close()
	}
	require.NoError(t, RestrictDirectories(path))
	require.Equal(t, os.FileMode(0o755), mode(), "another's socket is in it")
	require.NoError(t, RestrictDirectories(path, other))
	require.Equal(t, os.FileMode(0o700), mode())

	require.NoError(t, os.Chmod(dir, 0o755))
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(dir, link))
	require.NoError(t, RestrictDirectories(filepath.Join(link, "s.sock"), filepath.Join(link, "other.sock")))
	require.Equal(t, os.FileMode(0o755), mode(), "behind a link")
	if os.Geteuid() == 0 {
		require.NoError(t, os.Chown(dir, 65534, -1))
		require.NoError(t, RestrictDirectories(path, other))
		require.Equal(t, os.FileMode(0o755), mode(), "of another user")
	}
}

// A user who can replace the socket could answer containerd.
func TestListenInADirectoryOfOthers(t *testing.T) {
	path := socketPath(t)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.Chmod(filepath.Dir(path), 0o777))
	_, err := Listen(t.Context(), path)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, filepath.Dir(path)+" has mode 0777")
	require.NoFileExists(t, path+".lock")
}
