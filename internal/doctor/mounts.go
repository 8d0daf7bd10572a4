package doctor

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// lookAtMounts compares the mount namespaces of the daemon and of each containerd: containerd must
// see thinsnap's mounts.
func lookAtMounts(_ context.Context, m *machine) finding {
	d := m.daemon()
	if d.err != nil {
		return skipped("no daemon has opened its pool")
	}
	return m.each(func(s containerdState, _ string) finding {
		if s.PID == 0 {
			return skipped("it does not run")
		}
		return m.host.sameMounts(d.info.Daemon.PID, s.PID, m.config().Root)
	})
}

// sameMounts compares the mount namespaces of two processes. If they differ, the mount of the root
// must be shared in both.
func (h host) sameMounts(daemon, containerd int, root string) finding {
	one, err := os.Readlink(h.path(fmt.Sprintf("/proc/%d/ns/mnt", daemon)))
	two, err2 := os.Readlink(h.path(fmt.Sprintf("/proc/%d/ns/mnt", containerd)))
	if err != nil || err2 != nil {
		return skipped("the mount namespace of process %d or %d cannot be read", daemon, containerd)
	}
	if one == two {
		return ok("one mount namespace with the daemon")
	}
	group, other := h.peers(daemon, root), h.peers(containerd, root)
	if group != "" && group == other {
		return ok("its own mount namespace, with shared mounts below %s", root)
	}
	return problem(fmt.Sprintf("it does not see the daemon's mounts: their mount namespaces differ, and %s is not a "+
		"shared mount in both", root),
		"systemctl cat thinsnap containerd    # remove options that make a private mount namespace (systemd.exec(5))",
		"# in a container: mount "+root+" at the same path, with mountPropagation: Bidirectional")
}

// peers returns the peer group of a directory's mount, as "shared:N", or "" if it is private
// (mountinfo in proc(5)).
func (h host) peers(pid int, dir string) string {
	text := h.read(fmt.Sprintf("/proc/%d/mountinfo", pid))
	mounts, err := mountinfo.GetMountsFromReader(strings.NewReader(text), mountinfo.ParentsFilter(dir))
	if err != nil || len(mounts) == 0 {
		return ""
	}
	for _, tag := range strings.Fields(nearestMount(mounts).Optional) {
		if strings.HasPrefix(tag, "shared:") {
			return tag
		}
	}
	return ""
}
