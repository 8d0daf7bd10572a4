package doctor

import (
	"context"
	"os"
	"path/filepath"

	"github.com/thinsnap/thinsnap/internal/config"
)

// lookAtUdev looks for the rules that evaluate the flags of device-mapper's events: without them
// udev scans all volumes.
func lookAtUdev(_ context.Context, m *machine) finding {
	h := m.host
	if !h.exists("/run/udev/control") {
		u, err := m.unit()
		if err == nil && u.exists() && m.config().Pool.Mode == config.ModeDirectLVM {
			return warning("no udev runs: LVM makes its device nodes itself, for which the unit lacks CAP_MKNOD",
				"systemctl start systemd-udevd")
		}
		return ok("no udev runs; thinsnap makes the links below /dev/mapper itself")
	}
	for _, dir := range []string{"/etc/udev/rules.d", "/run/udev/rules.d", "/usr/local/lib/udev/rules.d",
		"/usr/lib/udev/rules.d",
		"/lib/udev/rules.d"} {
		files, err := filepath.Glob(h.path(filepath.Join(dir, "*-dm.rules")))
		if err != nil {
			continue
		}
		for _, file := range files {
			if info, err := os.Stat(file); err == nil && info.Size() > 0 {
				return ok("runs, with device-mapper's rules (%s)", filepath.Join(dir, filepath.Base(file)))
			}
		}
	}
	return warning("udev runs without device-mapper's rules, so it opens and scans each volume",
		h.install(pkg{"dmsetup", "device-mapper"}), "udevadm control --reload")
}
