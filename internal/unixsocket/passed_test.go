package unixsocket

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// systemdSocket creates a socket as systemd does; pass returns descriptors of it.
func systemdSocket(t *testing.T, mode os.FileMode) (path string, pass func() *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	require.NoError(t, os.Chmod(path, mode))
	return path, func() *os.File {
		f, err := l.File()
		require.NoError(t, err)
		return f
	}
}

// The socket is served, also if the configuration names it through a link, and stays systemd's afterwards.
func TestPassed(t *testing.T) {
	path, pass := systemdSocket(t, 0o600)
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(filepath.Dir(path), link))
	for _, configured := range []string{path, path + "/", filepath.Join(link, filepath.Base(path))} {
		waiting, err := net.Dial("unix", path)
		require.NoError(t, err, "before it is served")
		all, err := listeners([]*os.File{pass()}, map[string]string{Default: filepath.Clean(configured), "k3s": "/run/k3s.sock"})
		require.NoError(t, err)
		require.Len(t, all, 1)
		l := all[Default]
		conn, err := l.Accept()
		require.NoError(t, err)
		require.NoError(t, l.Close())
		require.NoError(t, conn.Close())
		require.NoError(t, waiting.Close())
		require.FileExists(t, path)
	}
}

// A client's socket has its name, and the default client's has any other.
func TestPassedForEachClient(t *testing.T) {
	path, pass := systemdSocket(t, 0o600)
	other, passOther := systemdSocket(t, 0o600)
	named := func(f *os.File, name string) *os.File {
		fd, err := unix.Dup(int(f.Fd()))
		require.NoError(t, err)
		require.NoError(t, f.Close())
		return os.NewFile(uintptr(fd), name)
	}
	paths := map[string]string{Default: path, "k3s": other, "moby": filepath.Join(t.TempDir(), "moby.sock")}
	all, err := listeners([]*os.File{named(passOther(), "k3s"), named(pass(), "thinsnap.socket")}, paths)
	require.NoError(t, err)
	require.Len(t, all, 2, "the socket of moby is not systemd's")
	for name, l := range all {
		require.Equal(t, paths[name], l.Addr().String())
		require.NoError(t, l.Close())
	}
	_, err = listeners([]*os.File{named(passOther(), "k3s"), named(pass(), "k3s")}, paths)
	require.ErrorContains(t, err, "two sockets")
	_, err = listeners([]*os.File{named(passOther(), "none"), named(pass(), "thinsnap.socket")}, paths)
	require.ErrorContains(t, err, `named "none" and "thinsnap.socket"`)
	_, err = listeners([]*os.File{named(pass(), "k3s")}, paths)
	require.ErrorContains(t, err, "but its socket unit listens on "+path)
}

func TestPassedIsRefused(t *testing.T) {
	path, pass := systemdSocket(t, 0o600)
	_, err := listeners([]*os.File{pass(), pass()}, map[string]string{Default: path})
	require.ErrorContains(t, err, "two sockets")
	_, err = listeners([]*os.File{pass()}, map[string]string{Default: filepath.Join(t.TempDir(), "other")})
	require.ErrorContains(t, err, "but its socket unit listens on "+path)
	require.NoError(t, os.Remove(path))
	_, err = listeners([]*os.File{pass()}, map[string]string{Default: path})
	require.ErrorIs(t, err, os.ErrNotExist)
	open, pass := systemdSocket(t, 0o660)
	_, err = listeners([]*os.File{pass()}, map[string]string{Default: open})
	require.ErrorContains(t, err, "SocketMode=0600")
	file, err := os.Open(os.DevNull)
	require.NoError(t, err)
	_, err = listeners([]*os.File{file}, map[string]string{Default: path})
	require.Error(t, err)
}

// Without systemd, or with descriptors for another process.
func TestNoSocketWasPassed(t *testing.T) {
	t.Setenv("LISTEN_FDS", "1")
	t.Setenv("LISTEN_PID", "1")
	all, err := Passed(map[string]string{Default: "/run/thinsnap/thinsnap.sock"})
	require.NoError(t, err)
	require.Empty(t, all)
}

// Waiting connections are closed, later ones are not.
func TestRefusePassed(t *testing.T) {
	path, pass := systemdSocket(t, 0o600)
	var waiting []net.Conn
	for range 3 {
		conn, err := net.Dial("unix", path)
		require.NoError(t, err)
		waiting = append(waiting, conn)
	}
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run '^TestRefuses$'`, os.Args[0])
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "THINSNAP_TEST_PASSED=1")
	cmd.ExtraFiles = []*os.File{pass()}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, conn := range waiting {
		_, err := conn.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		require.NoError(t, conn.Close())
	}
	conn, err := net.Dial("unix", path)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

// TestRefuses is the process of TestRefusePassed.
func TestRefuses(t *testing.T) {
	if os.Getenv("THINSNAP_TEST_PASSED") == "" {
		return
	}
	RefusePassed()
	require.Empty(t, os.Getenv("LISTEN_FDS"))
}

// Another file may get the number of a passed descriptor afterwards, and stays open.
func TestPassedClosesNothingElse(t *testing.T) {
	path, pass := systemdSocket(t, 0o600)
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run '^TestServesPassed$'`, os.Args[0])
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "THINSNAP_TEST_PASSED="+path)
	cmd.ExtraFiles = []*os.File{pass()}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// TestServesPassed is the process of TestPassedClosesNothingElse.
func TestServesPassed(t *testing.T) {
	path := os.Getenv("THINSNAP_TEST_PASSED")
	if path == "" {
		return
	}
	all, err := Passed(map[string]string{Default: path})
	require.NoError(t, err)
	l := all[Default]
	require.Empty(t, os.Getenv("LISTEN_FDS"))
	var opened []int
	for range 5 {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		opened = append(opened, fd)
	}
	for range 10 {
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
	for _, fd := range opened {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		require.NoError(t, err, "descriptor %d of %v", fd, opened)
	}
	require.NoError(t, l.Close())
}
