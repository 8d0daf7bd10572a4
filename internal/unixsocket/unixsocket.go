// Package unixsocket listens on unix sockets that only root can use. It replaces a stale socket of
// a dead process, but never the socket of a running one.
package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// answerTime limits the wait for a running process to accept a connection. The kernel accepts for a
// busy process, so the wait ends only if the process's queue is full.
const answerTime = 2 * time.Second

// lockTime limits the wait for other processes that open sockets in the directory, each for at most
// answerTime.
const lockTime = 10 * time.Second

// ErrInUse is returned if another process answers on the socket.
var ErrInUse = errors.New("another process answers on this socket")

// Listen creates a socket with mode 0600 at path, and its directory with mode 0700 if it is
// missing. A stale socket is replaced. A socket on which a process answers is ErrInUse; any other
// file at path is an error. Closing the listener removes the socket.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	l, err := listen(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

func listen(ctx context.Context, path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, dir)
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

// lock serializes Listen calls in the directory: two processes that find the same stale socket must
// not remove each other's new one. The wait is limited by lockTime.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lockTime)
	defer cancel()
	retry := time.NewTicker(10 * time.Millisecond)
	defer retry.Stop()
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			select {
			case <-retry.C:
				continue
			case <-ctx.Done():
			}
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
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
