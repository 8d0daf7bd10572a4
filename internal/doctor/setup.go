package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/setup"
	"github.com/thinsnap/thinsnap/internal/setup/disk"
)

// setup is the command that configures a containerd. It includes the options in force, because each
// set-up replaces those of the last.
func (m *machine) setup(s containerdState) string {
	command := "thinsnap setup " + string(s.Kind)
	if !m.Optional {
		command += " --config " + quote(m.File)
	}
	if s.Kind == setup.Docker {
		return command
	}
	if s.Kind == setup.System && s.Config != "" && s.Config != setup.DefaultConfig {
		command += " --containerd-config " + quote(s.Config)
	}
	isDefault, runtimes := s.uses(s.config.proxies(m.addresses()))
	if s.Kind == setup.K3s && !s.release.AtLeast(2, 0) {
		return command // k3s's own option sets the snapshotter
	}
	if isDefault {
		command += " --default"
	}
	for _, name := range runtimes {
		command += " --runtime " + quote(name)
	}
	return command
}

// uses reports whether one of the snapshotters is the CRI plugin's default, and returns the
// runtimes that use one.
func (s containerdState) uses(snapshotters []string) (isDefault bool, runtimes []string) {
	for _, v := range s.config.values("snapshotter") {
		name, _ := v.value.(string)
		if len(v.table) == 0 || !slices.Contains(snapshotters, name) {
			continue
		}
		switch last := len(v.table) - 1; {
		case len(v.table) > 1 && v.table[last-1] == "runtimes":
			runtimes = append(runtimes, v.table[last])
		case v.table[last] == "io.containerd.cri.v1.images" || strings.HasSuffix(v.table[0], "cri") && len(v.table) == 2:
			isDefault = true
		}
	}
	slices.Sort(runtimes)
	return isDefault, slices.Compact(runtimes)
}

// toSetUp returns the containerd that has thinsnap, or otherwise the first one to set up. It
// returns false if `thinsnap setup` can configure none.
func (m *machine) toSetUp() (containerdState, bool) {
	all := m.ours()
	if len(all) == 0 {
		all, _ = m.containerds()
	}
	all = slices.DeleteFunc(slices.Clone(all), func(s containerdState) bool { return s.Kind == setup.Docker })
	if len(all) == 0 {
		return containerdState{}, false
	}
	return all[max(0, slices.IndexFunc(all, func(s containerdState) bool { return s.Kind == setup.System }))], true
}

// allowing returns the commands that allow the unit to use a disk.
func (m *machine) allowing(device string) []string {
	c := m.config()
	if s, can := m.toSetUp(); can && c.Pool.Mode == config.ModeDirectLVM && c.Pool.DirectLVM.Device == device {
		return []string{m.setup(s) + " --disk " + quote(device)}
	}
	if name, _, err := disk.Stable(device, m.host.path(disk.ByID)); err == nil {
		device = name
	}
	unit := quote(disk.UnitOf(device))
	return []string{
		"mkdir -p " + dropInDir,
		fmt.Sprintf(`printf '[Unit]\nWants=%%s\nAfter=lvm2-monitor.service %%s\n[Service]\nDeviceAllow=%%s rw\n' %s %s %s >> %s`,
			unit, unit, quote(device), dropInDir+"/disks.conf"),
	}
}
