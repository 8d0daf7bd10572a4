// Package unixsocket listens on unix sockets that only this process's user and root can use: its own
// and those of systemd. It replaces the stale socket of a dead process, but never that of a running
// one.
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
// busy process, so a timeout means that the process's queue is full.
const answerTime = 2 * time.Second

// lockTime limits the wait for other processes that open the same socket, each for up to
// answerTime.
const lockTime = 10 * time.Second

// lockSuffix is appended to a socket's path for its lock file.
const lockSuffix = ".lock"

// ErrInUse is returned if another process answers on the socket.
var ErrInUse = errors.New("another process answers on this socket")

// Listen creates a socket with mode 0600 at path. If its directory is missing, Listen creates it
// with mode 0700. It replaces a stale socket, and returns ErrInUse if a process answers on the
// socket. Any other file at path is an error, and so is a directory above it to which other users
// can write.
//
// Closing the listener removes the socket. The lock file beside it, PATH.lock, stays.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	l, err := listen(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

func listen(ctx context.Context, path string) (net.Listener, error) {
	// A user who can replace the socket could answer in our place.
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

// restrict sets the mode before bind: the kernel creates the file with the mode of the unbound
// socket (net/unix/af_unix.c, unix_bind_bsd). So others can never connect.
func restrict(_, _ string, conn syscall.RawConn) error {
	var err error
	if controlErr := conn.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); controlErr != nil {
		return controlErr
	}
	return err
}

// RestrictDirectories removes the permissions of others from the directories of sockets. Another
// program, such as the kubelet, may have created one with mode 0755. A directory is left as it is
// if it belongs to another user, or has other files than these sockets and their locks.
func RestrictDirectories(paths ...string) error {
	own := make(map[string]bool)
	for _, path := range paths {
		path = filepath.Clean(path)
		own[path], own[path+lockSuffix] = true, true
	}
	for _, path := range paths {
		if err := restrictDirectory(filepath.Dir(path), own); err != nil {
			return fmt.Errorf("restrict the directory of %s: %w", path, err)
		}
	}
	return nil
}

func restrictDirectory(dir string, own map[string]bool) error {
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

// ignoreMissing returns nil for a directory that is missing or a link, whose target may be any
// directory.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return err
}

// lock serializes Listen calls for a socket: of two processes that find the same stale socket,
// neither may remove the other's new one. Others cannot open the lock file, and so cannot hold its
// lock. The wait is at most lockTime.
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
		return errors.New("others may hold this lock, because it is not a regular file of this user with mode 0600: " +
			"remove the file")
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
			return fmt.Errorf("%w: held by %s", err, lockHolder(info))
		}
	}
}

// lockHolder names the process that has locked a file, from /proc/locks (proc_locks(5)).
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

// removeStale removes a socket on which no process answers.
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
