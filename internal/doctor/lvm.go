package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/rootdir"
)

// profileDir is the directory of LVM's profiles, in which thinsnap writes one for its pool.
const profileDir = "/etc/lvm/profile"

// lookAtLVM checks LVM's configuration, for a pool that LVM creates or activates.
func lookAtLVM(ctx context.Context, m *machine) finding {
	c, h := m.config(), m.host
	if c.Pool.Mode != config.ModeDirectLVM && !isLVM(c) {
		return skipped("mode %q does not use it", c.Pool.Mode)
	}
	if !h.installed("pvs") {
		return skipped("it is not installed")
	}
	out, err := h.run(ctx, "lvm", "version")
	if err != nil {
		return problem(err.Error(), "lvm version")
	}
	version := "LVM"
	if found := regexp.MustCompile(`LVM version:\s+(\S+)`).FindStringSubmatch(out); found != nil {
		version += " " + found[1]
	}
	if c.Pool.Mode != config.ModeDirectLVM {
		return ok("%s", version)
	}
	var st unix.Statfs_t
	if err := h.statfs(h.path(nearestIn(h, profileDir)), &st); err == nil && st.Flags&unix.ST_RDONLY != 0 {
		return problem(profileDir+" is on a read-only file system: thinsnap writes LVM's profile of its pool there",
			"mount -o remount,rw "+quote(mountOf(nearest(profileDir))))
	}
	disks := m.poolDisks(ctx)
	for _, disk := range disks {
		if f, refused := m.refusedDisk(ctx, disk); refused {
			return f
		}
	}
	return ok("%s; it accepts %s", version, strings.Join(disks, ", "))
}

// nearestIn is nearest on the given host.
func nearestIn(h host, dir string) string {
	for !h.exists(dir) && dir != "/" {
		dir = filepath.Dir(dir)
	}
	return dir
}

// refusedDisk has LVM list a disk. It returns a finding if lvm.conf or the devices file hides the
// disk from LVM.
func (m *machine) refusedDisk(ctx context.Context, disk string) (f finding, refused bool) {
	number, isBlock := m.host.isBlock(disk)
	if !isBlock {
		return finding{}, false // another check reports it
	}
	path, err := filepath.EvalSymlinks(m.host.path(disk))
	if err != nil {
		return finding{}, false
	}
	sees := func(more string) (bool, error) {
		out, err := m.host.run(ctx, "lvmdiskscan", "--config",
			fmt.Sprintf(`devices{filter=["a|^%s$|","r|.*|"]%s}`, strings.NewReplacer(".", "[.]", "+", "[+]").Replace(path),
				more))
		if err != nil {
			return false, err
		}
		for _, name := range strings.Fields(out) {
			if other, isBlock := m.host.isBlock(name); isBlock && other == number {
				return true, nil
			}
		}
		return false, nil
	}
	switch seen, err := sees(""); {
	case err != nil:
		return problem("LVM does not answer: "+err.Error(), "lvmdiskscan"), true
	case seen:
		return finding{}, false
	}
	if seen, err := sees(" use_devicesfile=0"); err == nil && seen {
		if _, err := os.Stat(rootdir.Store(m.config().Root)); err != nil {
			return finding{}, false // LVM adds the disk to the devices file when it creates the pool
		}
		return problem(fmt.Sprintf("LVM does not use %s: it is not in the devices file", disk),
			"lvmdevices --adddev "+quote(disk)), true
	}
	return problem(fmt.Sprintf("LVM does not use %s: global_filter in lvm.conf excludes it, or it has partitions", disk),
		"lvmconfig devices/global_filter", "lsblk "+quote(disk)), true
}
