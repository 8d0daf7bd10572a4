package doctor

import (
	"context"
	"strings"

	"github.com/thinsnap/thinsnap/internal/config"
)

// needed is a program that thinsnap runs.
type needed struct {
	name string
	pkg  pkg
	// why is the reason to install a recommended program; "" if thinsnap needs it.
	why string
}

// programs returns the programs that thinsnap runs with this configuration.
func programs(c config.Config, systemd bool) []needed {
	lvm, thinTools := pkg{"lvm2", "lvm2"}, pkg{"thin-provisioning-tools", "device-mapper-persistent-data"}
	var all []needed
	switch c.Filesystem.Type {
	case config.XFS:
		all = append(all, needed{"mkfs.xfs", pkg{"xfsprogs", "xfsprogs"}, ""})
	default:
		all = append(all, needed{"mkfs.ext4", pkg{"e2fsprogs", "e2fsprogs"}, ""})
	}
	switch c.Pool.Mode {
	case config.ModeDirectLVM:
		for _, name := range []string{"pvs", "lvs", "pvcreate", "vgcreate", "lvcreate", "lvconvert", "lvchange", "lvextend"} {
			all = append(all, needed{name, lvm, ""})
		}
		all = append(all, needed{"wipefs", pkg{"util-linux", "util-linux"}, ""},
			needed{"thin_check", thinTools, "LVM checks the pool's metadata with it"})
	case config.ModeLoop:
		all = append(all, needed{"thin_check", thinTools, "`thinsnap pool check` needs it"},
			needed{"thin_repair", thinTools, "`thinsnap pool repair` needs it"})
	case config.ModeExisting:
		if isLVM(c) {
			all = append(all, needed{"lvchange", lvm, "it activates the pool after a reboot"})
		}
	}
	if systemd {
		all = append(all, needed{"modprobe", pkg{"kmod", "kmod"}, "the unit loads the kernel's modules with it"})
	}
	return all
}

// isLVM reports whether the configuration names a pool in mode "existing" by its LVM name.
func isLVM(c config.Config) bool {
	device := c.Pool.Existing.Device
	return c.Pool.Mode == config.ModeExisting && strings.Contains(device, "/") && !strings.HasPrefix(device,
		"/dev/mapper/")
}

func lookAtPrograms(_ context.Context, m *machine) finding {
	var have, lines []string
	var packages []pkg
	lacks := false
	for _, p := range programs(m.config(), m.host.systemd()) {
		switch {
		case m.host.installed(p.name):
			have = append(have, p.name)
			continue
		case p.why == "":
			lacks = true
			lines = append(lines, p.name+" is missing")
		default:
			lines = append(lines, p.name+" is missing: "+p.why)
		}
		packages = append(packages, p.pkg)
	}
	switch {
	case lacks:
		return problem(strings.Join(lines, "\n"), m.host.install(packages...))
	case len(packages) > 0:
		return warning(strings.Join(lines, "\n"), m.host.install(packages...))
	}
	return ok("%s", strings.Join(have, ", "))
}
