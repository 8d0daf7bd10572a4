package doctor

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/internal/config"
)

// poolDisks returns the pool's configured disk and, if the pool is active, the disks below it.
func (m *machine) poolDisks() []string {
	c := m.config()
	var disks []string
	mapped := ""
	switch c.Pool.Mode {
	case config.ModeDirectLVM:
		disks = append(disks, c.Pool.DirectLVM.Device)
		mapped = pool.DeviceName(c.Pool.Name + "/pool")
	case config.ModeExisting:
		mapped = pool.DeviceName(c.Pool.Existing.Device)
	}
	if mapped == "" {
		return disks
	}
	for _, disk := range m.host.below("/dev/mapper/" + mapped) {
		same := func(other string) bool {
			one, isOne := m.host.isBlock(other)
			two, isTwo := m.host.isBlock(disk)
			return isOne && isTwo && one == two
		}
		if !slices.ContainsFunc(disks, same) {
			disks = append(disks, disk)
		}
	}
	return disks
}

// below returns the disks and partitions below a mapped device, from sysfs.
func (h host) below(mapped string) []string {
	number, isBlock := h.isBlock(mapped)
	if !isBlock {
		return nil
	}
	var found []string
	var walk func(dir string)
	walk = func(dir string) {
		entries, err := os.ReadDir(filepath.Join(dir, "slaves"))
		if err != nil || len(entries) == 0 {
			// sysfs has "!" for "/" in names such as cciss/c0d0.
			found = append(found, "/dev/"+strings.ReplaceAll(path.Base(dir), "!", "/"))
			return
		}
		for _, e := range entries {
			if lower, err := filepath.EvalSymlinks(filepath.Join(dir, "slaves", e.Name())); err == nil {
				walk(lower)
			}
		}
	}
	link := h.path(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(number), unix.Minor(number)))
	if dir, err := filepath.EvalSymlinks(link); err == nil {
		walk(dir)
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// isClass reports whether a device belongs to a class of /proc/devices. The class may be a pattern,
// such as "*".
func (h host) isClass(class string, number uint64) bool {
	_, blocks, _ := strings.Cut(h.read("/proc/devices"), "Block devices:")
	for line := range strings.Lines(blocks) {
		fields := strings.Fields(line)
		if len(fields) != 2 || fields[0] != fmt.Sprint(unix.Major(number)) {
			continue
		}
		if is, err := path.Match(class, fields[1]); err == nil && is {
			return true
		}
	}
	return false
}
