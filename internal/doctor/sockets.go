package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/thinsnap/thinsnap/internal/trustedpath"
)

// lookAtSocket checks containerd's socket without connecting, because that could start the daemon.
func lookAtSocket(_ context.Context, m *machine) finding {
	address := m.config().Address
	if _, err := trustedpath.Resolve(address); err != nil {
		return problem(fmt.Sprintf("listen on %s: %v", address, err), "ls -ld "+quote(filepath.Dir(address)))
	}
	start := []string{"thinsnap --config " + quote(m.File) + " serve    # in a terminal of its own, or as a service"}
	if u, err := m.unit(); err == nil && u.exists() {
		if socket, _ := m.socketUnit(); !u.active() && !socket.listens() {
			return skipped("the units do not run")
		}
		start = []string{"systemctl restart thinsnap"}
	}
	info, err := os.Lstat(address)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return problem(address+" does not exist: thinsnap does not run", start...)
	case err != nil:
		return problem(err.Error(), "ls -l "+quote(address))
	case info.Mode().Type() != fs.ModeSocket:
		return problem(address+" exists and is not a socket", "ls -l "+quote(address),
			"# remove it, or choose another address")
	}
	if owner := trustedpath.OwnerOf(info); owner != os.Geteuid() {
		return problem(fmt.Sprintf("%s belongs to user %d, who can answer in thinsnap's place", address, owner),
			"systemctl stop thinsnap.socket thinsnap", "rm "+quote(address), "systemctl start thinsnap")
	}
	if !m.host.listens(address) {
		return problem("nothing listens on "+address, start...)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return warning(fmt.Sprintf("%s has mode %04o: other users can read and change all snapshots", address, mode),
			"chmod 0600 "+quote(address))
	}
	return ok("%s, mode %04o", address, info.Mode().Perm())
}

// listens reports whether a process listens on the unix socket with that path. The fields of
// /proc/net/unix are Num, RefCount, Protocol, Flags, Type, St, Inode and Path.
func (h host) listens(address string) bool {
	const acceptsConnections = "00010000" // __SO_ACCEPTCON (include/uapi/linux/net.h)
	for line := range strings.Lines(h.read("/proc/net/unix")) {
		fields := strings.Fields(line)
		if len(fields) == 8 && fields[3] == acceptsConnections && fields[7] == address {
			return true
		}
	}
	return false
}
