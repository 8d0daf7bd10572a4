package doctor

import (
	"context"
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

// poolDisks returns the disks of the pool's volume group and, if the pool is active, the disks below
// it. The configured disk is one of them unless it was replaced.
func (m *machine) poolDisks(ctx context.Context) []string {
	c := m.config()
	var disks []string
	mapped := ""
	switch c.Pool.Mode {
	case config.ModeDirectLVM:
		disks = m.groupDisks(ctx, c)
		mapped = pool.DeviceName(c.Pool.Name + "/pool")
	case config.ModeExisting:
		mapped = pool.DeviceName(c.Pool.Existing.Device)
	}
	if mapped == "" {
		return disks
	}
	for _, disk := range m.host.below("/dev/mapper/" + mapped) {
		if !slices.ContainsFunc(disks, m.host.sameAs(disk)) {
			disks = append(disks, disk)
		}
	}
	return disks
}

// groupDisks returns the disks that LVM has in the pool's volume group. Without such a group, or if
// LVM misses a disk of it, the configured disk is one of them.
func (m *machine) groupDisks(ctx context.Context, c config.Config) []string {
	configured := c.Pool.DirectLVM.Device
	if !m.host.installed("pvs") {
		return []string{configured}
	}
	disks, missing, err := m.host.groupDisks(ctx, c.Pool.Name)
	if err != nil {
		return []string{configured} // another check reports it
	}
	if at := slices.IndexFunc(disks, m.host.sameAs(configured)); at >= 0 {
		disks[at] = configured
	} else if missing || len(disks) == 0 {
		disks = append(disks, configured)
	}
	return disks
}

// sameAs returns whether its argument and disk are the same block device.
func (h host) sameAs(disk string) func(other string) bool {
	return func(other string) bool {
		one, isOne := h.isBlock(other)
		two, isTwo := h.isBlock(disk)
		return isOne && isTwo && one == two
	}
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
