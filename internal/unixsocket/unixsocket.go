// Package unixsocket listens on unix sockets that only root may use, and takes the place of a socket that a dead process
// left behind without ever taking that of a living one.
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

// answerTime bounds the wait for a living process to accept a connection. A unix socket accepts while its process is
// merely busy, so that this is reached only if the process's queue is full.
const answerTime = 2 * time.Second

// lockTime bounds the wait for other processes that are at the same directory's sockets, each for answerTime at most.
const lockTime = 10 * time.Second

// ErrInUse is returned when another process answers on the socket.
var ErrInUse = errors.New("another process answers on this socket")

// Listen makes a socket of mode 0600 at path, and its directory with mode 0700 if there is none. A socket on which nobody
// answers is replaced; one on which somebody does is ErrInUse, and anything else in that place is an error too. Closing
// the listener removes the socket.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	l, err := listen(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
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

// restrict gives the socket its mode before it has a name: the kernel makes the file with the mode of the unbound socket
// (net/unix/af_unix.c, unix_bind_bsd), and so there is no moment in which others can connect.
func restrict(_, _ string, conn syscall.RawConn) error {
	var err error
	if controlErr := conn.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); controlErr != nil {
		return controlErr
	}
	return err
}

// lock keeps two processes from finding the same stale socket at once, and the second from removing what the first has
// just made. It is held for the time of Listen only; the wait for it is bounded by lockTime.
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
		return nil, errors.Join(fmt.Errorf("locking %s: %w", dir, err), f.Close())
	}
}

// removeStale removes a socket on which nobody answers.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is a file in this place that is not a socket")
	}
	dialer := net.Dialer{Timeout: answerTime}
	conn, err := dialer.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return errors.Join(ErrInUse, conn.Close())
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(path)
	default:
		return fmt.Errorf("cannot tell whether a process answers there: %w", err)
	}
}
