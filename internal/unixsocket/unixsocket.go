// Package unixsocket listens on unix sockets that only root can use. It replaces a stale socket of
// a dead process, but never the socket of a running one.
package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/trustedpath"
)

// answerTime limits the wait for a running process to accept a connection. The kernel accepts for a
// busy process, so the wait ends only if the process's queue is full.
const answerTime = 2 * time.Second

// lockTime limits the wait for other processes that open the same socket, each for at most
// answerTime.
const lockTime = 10 * time.Second

// lockSuffix follows a socket's path in the path of its lock file.
const lockSuffix = ".lock"

// ErrInUse is returned if another process answers on the socket.
var ErrInUse = errors.New("another process answers on this socket")

// Listen creates a socket with mode 0600 at path, and its directory with mode 0700 if it is
// missing. A lock file beside it, PATH.lock, stays. A stale socket is replaced. A socket on which a
// process answers is ErrInUse; any other file at path is an error, and so is a directory above it to
// which other users can write. Closing the listener removes the socket.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	l, err := listen(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

func listen(ctx context.Context, path string) (net.Listener, error) {
	// Who can replace the socket answers in our place.
	if _, err := trustedpath.Resolve(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, path+lockSuffix)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: restrict}
	return config.Listen(ctx, "unix", path)
}

// restrict sets the socket's mode before it is bound: the kernel creates the file with the mode of
// the unbound socket (net/unix/af_unix.c, unix_bind_bsd), so others can never connect.
func restrict(_, _ string, conn syscall.RawConn) error {
	var err error
	if controlErr := conn.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); controlErr != nil {
		return controlErr
	}
	return err
}

// CloseDirectories removes the permissions of others from each directory of the sockets that belongs
// to this user and has nothing in it but these sockets and their locks: made by another program, such
// as the kubelet, it may have mode 0755. A directory that others use is left as it is.
func CloseDirectories(paths ...string) error {
	own := make(map[string]bool)
	for _, path := range paths {
		path = filepath.Clean(path)
		own[path], own[path+lockSuffix] = true, true
	}
	for _, path := range paths {
		if err := closeDirectory(filepath.Dir(path), own); err != nil {
			return fmt.Errorf("close the directory of %s: %w", path, err)
		}
	}
	return nil
}

func closeDirectory(dir string, own map[string]bool) error {
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return ignoreMissing(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 == 0 || trustedpath.OwnerOf(info) != os.Geteuid() {
		return nil
	}
	names, err := f.Readdirnames(len(own) + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for _, name := range names {
		if !own[filepath.Join(dir, name)] {
			return nil
		}
	}
	return f.Chmod(0o700)
}

// ignoreMissing returns nil for a directory that is not there, or that is a link: a link's target may
// be anything.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return err
}

// lock serializes Listen calls for a socket: two processes that find the same stale socket must not
// remove each other's new one. Others cannot open the file, so they cannot hold its lock. The wait is
// limited by lockTime.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	if err := waitForLock(ctx, f); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

func waitForLock(ctx context.Context, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || trustedpath.OwnerOf(info) != os.Geteuid() || info.Mode().Perm()&0o077 != 0 {
		return errors.New("others may hold this lock: it must be a file of this user with mode 0600; remove it")
	}
	ctx, cancel := context.WithTimeout(ctx, lockTime)
	defer cancel()
	retry := time.NewTicker(10 * time.Millisecond)
	defer retry.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %s has it", err, lockHolder(info))
		}
	}
}

// lockHolder names the process that has locked a file, as /proc/locks shows it: proc_locks(5).
func lockHolder(info fs.FileInfo) string {
	st, ok := info.Sys().(*syscall.Stat_t)
	locks, err := os.ReadFile("/proc/locks")
	if !ok || err != nil {
		return "another process"
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(locks)) {
		fields := strings.Fields(line) // 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END
		if len(fields) >= 6 && fields[1] == "FLOCK" && fields[5] == file {
			return "process " + fields[4]
		}
	}
	return "another process"
}

// removeStale removes a socket if no process answers on it.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("the path exists and is not a socket")
	}
	dialer := net.Dialer{Timeout: answerTime}
	conn, err := dialer.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return errors.Join(ErrInUse, conn.Close())
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(path)
	default:
		return fmt.Errorf("find out whether a process answers there: %w", err)
	}
}
