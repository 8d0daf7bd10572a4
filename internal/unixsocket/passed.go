package unixsocket

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/trustedpath"
)

// Passed returns a listener on the socket that systemd has passed to this process (sd_listen_fds(3)), or nil
// if it has passed none. Closing it leaves the socket to systemd. The socket must be at path, of this user
// and with mode 0600, and be the only one; else it closes the connections that wait, as RefusePassed does.
//
// It takes the descriptors over. They must not be taken twice: the second os.File of a number would close what
// has that number by then, when the garbage collector finds it.
func Passed(path string) (net.Listener, error) {
	files := activation.Files(true) // nor are they for the programs that this one starts
	if len(files) == 0 {
		return nil, nil //nolint:nilnil // there is none
	}
	l, err := passed(files, path)
	if err != nil {
		refuse(files)
		return nil, fmt.Errorf("use the socket of systemd: %w", err)
	}
	return l, nil
}

func passed(files []*os.File, path string) (net.Listener, error) {
	if len(files) != 1 {
		return nil, fmt.Errorf("systemd has passed %d sockets, but thinsnap.socket must have only one", len(files))
	}
	l, err := net.FileListener(files[0])
	if err != nil {
		return nil, err
	}
	if err := checkPassed(l.Addr().String(), path); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, files[0].Close()
}

func checkPassed(passed, path string) error {
	if _, err := trustedpath.Resolve(path); err != nil {
		return err
	}
	at, err := os.Lstat(passed)
	if err != nil {
		return fmt.Errorf("it is not where it was made (`systemctl restart thinsnap.socket`): %w", err)
	}
	if filepath.Clean(path) != filepath.Clean(passed) {
		if other, err := os.Lstat(path); err != nil || !os.SameFile(at, other) {
			return fmt.Errorf("address is %s, but thinsnap.socket listens on %s: give both the same (ListenStream=)",
				path, passed)
		}
	}
	if at.Mode().Perm()&0o077 != 0 || trustedpath.OwnerOf(at) != os.Geteuid() {
		return fmt.Errorf("others may use %s: thinsnap.socket must have SocketMode=0600 and no SocketUser=", passed)
	}
	return nil
}

// RefusePassed closes the connections that wait on the sockets that systemd has passed. A process that ends
// because its configuration is invalid calls it: systemd would start it again for them at once, many times.
// After Passed there are none.
func RefusePassed() { refuse(activation.Files(true)) }

func refuse(files []*os.File) {
	for _, f := range files {
		refuseWaiting(int(f.Fd()))
		_ = f.Close()
	}
}

func refuseWaiting(socket int) {
	if err := unix.SetNonblock(socket, true); err != nil {
		return // accept would wait for the next one
	}
	for {
		conn, _, err := unix.Accept(socket)
		switch {
		case err == nil:
			_ = unix.Close(conn)
		case !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ECONNABORTED):
			return
		}
	}
}
