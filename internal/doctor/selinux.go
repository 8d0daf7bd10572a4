package doctor

import (
	"context"
	"slices"
	"strings"
)

func lookAtSELinux(_ context.Context, m *machine) finding {
	if m.host.read("/sys/fs/selinux/enforce") != "1" {
		return skipped("SELinux is not enforcing")
	}
	isContext := func(o string) bool { return strings.HasPrefix(o, "context=") }
	if slices.ContainsFunc(m.config().Filesystem.MountOptions, isContext) {
		return ok("enforcing; filesystem.mount_options has a context")
	}
	if all, err := m.containerds(); err == nil && slices.ContainsFunc(all, containerdState.selinux) {
		return ok("enforcing; containerd labels the file systems (enable_selinux)")
	}
	return warning("SELinux is enforcing, and a new file system has no labels: containers without labels from "+
		"containerd are denied access to their files",
		`# set enable_selinux = true in the CRI's configuration of containerd, or else in `+m.File+`:`,
		`# [filesystem]`, `# mount_options = ["context=system_u:object_r:container_file_t:s0"]`)
}
