package doctor

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/kernel"
)

const controlNode = "/dev/mapper/control"

func lookAtKernel(_ context.Context, m *machine) finding {
	if err := kernel.Check(m.host.release); err != nil {
		return problem(err.Error(), "# install Linux 5.12 or newer, and reboot")
	}
	return ok("Linux %s", m.host.release)
}

// lookAtDeviceMapper opens the control node only if device-mapper is loaded, because opening it
// would load the module.
func lookAtDeviceMapper(_ context.Context, m *machine) finding {
	h := m.host
	if !h.hasMisc("device-mapper") {
		return m.module("dm-thin-pool", "the kernel has not loaded device-mapper")
	}
	if !h.exists(controlNode) {
		if h.exists("/sys/module/dm_thin_pool") {
			return ok("loaded; thinsnap makes %s when it starts", controlNode)
		}
		return m.module("dm-thin-pool", "the kernel has device-mapper, but not its thin-pool target")
	}
	versions, err := h.targets()
	if errors.Is(err, devmapper.ErrUnavailable) {
		return problem(err.Error(), "ls -l "+controlNode)
	} else if err != nil {
		return problem("ask for the target types: "+err.Error(), "dmsetup targets")
	}
	for _, target := range []string{thin.PoolType, thin.Type} {
		if versions[target] == (devmapper.Version{}) {
			return m.module("dm-thin-pool", "the kernel has device-mapper, but not its target "+target)
		}
	}
	return ok("target thin-pool %v, target thin %v", versions[thin.PoolType], versions[thin.Type])
}

func lookAtLoopDevices(_ context.Context, m *machine) finding {
	if mode := m.config().Pool.Mode; mode != config.ModeLoop {
		return skipped("mode %q needs none", mode)
	}
	if !m.host.hasFields("/proc/devices", "7", "loop") {
		return m.module("loop", "the kernel has not loaded its loop devices")
	}
	if !m.host.exists("/dev/loop-control") {
		return problem("the kernel has loop devices, but /dev/loop-control is missing",
			"mknod -m 0600 /dev/loop-control c 10 237")
	}
	return ok("loaded")
}

// hasMisc reports whether the kernel has the named miscellaneous device. The lines of /proc/misc
// are "<minor> <name>".
func (h host) hasMisc(name string) bool {
	for line := range strings.Lines(h.read("/proc/misc")) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[1] == name {
			return true
		}
	}
	return false
}

// module is the finding for a module that is not loaded. If the kernel has the module, the unit
// loads it (modprobe@.service).
func (m *machine) module(name, missing string) finding {
	h := m.host
	if known, has := h.hasModule(name); known && !has {
		remedy := "# boot a kernel with the module " + name
		switch h.family() {
		case debian:
			remedy = "apt-get install --yes linux-modules-extra-$(uname -r)    # Ubuntu; Debian: linux-image-amd64, -arm64"
		case fedora:
			remedy = "dnf install --assumeyes kernel-modules-core-$(uname -r)    # or kernel-modules, on older releases"
		}
		return problem(fmt.Sprintf("%s, and Linux %s has no module %s", missing, h.release, name), remedy)
	}
	if u, err := m.unit(); err == nil && u.exists() && h.installed("modprobe") {
		return ok("%s yet; the unit loads the module %s when it starts", missing, name)
	}
	return problem(missing, "modprobe "+name, fmt.Sprintf("echo %s > /etc/modules-load.d/thinsnap-%s.conf", name, name))
}

// hasModule reports whether the kernel has a module, as a file or built in. It is unknown if the
// lists of modules are missing, as in a container.
func (h host) hasModule(name string) (known, has bool) {
	for _, dir := range []string{"/lib/modules", "/usr/lib/modules"} {
		for _, list := range []string{"modules.dep", "modules.builtin"} {
			text := h.read(path.Join(dir, h.release, list))
			known = known || text != ""
			for line := range strings.Lines(text) {
				file, _, _ := strings.Cut(strings.TrimSpace(line), ":")
				base, _, _ := strings.Cut(path.Base(file), ".")
				if strings.ReplaceAll(base, "_", "-") == name {
					return true, true
				}
			}
		}
	}
	return known, false
}
