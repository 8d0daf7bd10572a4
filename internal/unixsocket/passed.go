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

// Default is the name of the default client's socket in Passed.
const Default = ""

// Passed returns listeners on the sockets that systemd has passed to this process (sd_listen_fds(3)). paths maps the
// name of each socket (FileDescriptorName=) to its path. A socket whose name is not in paths counts as Default; at most
// one is allowed. Closing a listener leaves the socket to systemd.
//
// Each socket must be at its path, belong to this user, and have mode 0600. Otherwise Passed closes the connections
// that wait on all sockets, like RefusePassed.
//
// Passed takes over the descriptors, and must be called once: a second call would later close unrelated files with the
// same numbers.
func Passed(paths map[string]string) (map[string]net.Listener, error) {
	files := activation.Files(true) // true: programs that this one starts do not get them
	all, err := listeners(files, paths)
	if err != nil {
		for _, l := range all {
			_ = l.Close()
		}
		refuse(files)
		return nil, fmt.Errorf("use the socket of systemd: %w", err)
	}
	return all, nil
}

func listeners(files []*os.File, paths map[string]string) (map[string]net.Listener, error) {
	named := make(map[string]*os.File)
	for _, f := range files {
		name := f.Name()
		if _, is := paths[name]; !is {
			name = Default
		}
		if other, twice := named[name]; twice {
			return nil, fmt.Errorf("systemd has passed two sockets for one client, named %q and %q: thinsnap.socket must have "+
				"one socket, and so must the unit of each client in [[clients]], with the client's name (FileDescriptorName=); "+
				"disable the unit of a removed client", other.Name(), f.Name())
		}
		named[name] = f
	}
	all := make(map[string]net.Listener)
	for name, f := range named {
		l, err := net.FileListener(f)
		if err != nil {
			return all, err
		}
		if err := checkPassed(l.Addr().String(), paths[name]); err != nil {
			return all, errors.Join(err, l.Close())
		}
		all[name] = l
	}
	for _, f := range named {
		if err := f.Close(); err != nil {
			return all, err
		}
	}
	return all, nil
}

func checkPassed(passed, path string) error {
	if _, err := trustedpath.Resolve(path); err != nil {
		return err
	}
	at, err := os.Lstat(passed)
	if err != nil {
		return fmt.Errorf("its file is gone (run `systemctl stop thinsnap.socket thinsnap`, then `systemctl start "+
			"thinsnap`; for a client's socket, the same with its units): %w", err)
	}
	if filepath.Clean(path) != filepath.Clean(passed) {
		if other, err := os.Lstat(path); err != nil || !os.SameFile(at, other) {
			return fmt.Errorf("address is %s, but its socket unit listens on %s: give both the same (ListenStream=)",
				path, passed)
		}
	}
	if at.Mode().Perm()&0o077 != 0 || trustedpath.OwnerOf(at) != os.Geteuid() {
		return fmt.Errorf("others may use %s: its socket unit must have SocketMode=0600 and no SocketUser=", passed)
	}
	return nil
}

// RefusePassed closes the connections that wait on the sockets that systemd has passed. A process that ends because of
// an invalid configuration calls it. Otherwise systemd would start it again at once, many times. After Passed there are
// no sockets left.
func RefusePassed() { refuse(activation.Files(true)) }

func refuse(files []*os.File) {
	for _, f := range files {
		refuseWaiting(int(f.Fd()))
		_ = f.Close()
	}
}

func refuseWaiting(socket int) {
	if err := unix.SetNonblock(socket, true); err != nil {
		return // accept would block
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
