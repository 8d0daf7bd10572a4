package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/integration/vm/internal/wire"
)

// TempDir is the TMPDIR of the guest's programs: a tmpfs. /tmp stays the host's under the root overlay, because `go
// test` puts the programs to run there.
const TempDir = "/run/tmp"

type mountPoint struct {
	source, target, fstype, options string
	flags                           uintptr
}

// mounts lists the guest's mounts beyond its root, /proc, /sys and /dev, in order. Those under /var/lib are tmpfs
// because the root, an overlayfs, cannot be the upper layer of another overlayfs and has no direct I/O.
func mounts() []mountPoint {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV
	return []mountPoint{
		{"tmpfs", "/run", "tmpfs", "mode=755,size=90%", quiet},
		{"devpts", "/dev/pts", "devpts", "gid=5,mode=620,ptmxmode=666", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"tmpfs", "/dev/shm", "tmpfs", "mode=1777", quiet},
		{"mqueue", "/dev/mqueue", "mqueue", "", quiet | unix.MS_NOEXEC},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", "", quiet | unix.MS_NOEXEC},
		{"debugfs", "/sys/kernel/debug", "debugfs", "", quiet | unix.MS_NOEXEC},
		{"tmpfs", TempDir, "tmpfs", "mode=1777,size=90%", 0},
		{"tmpfs", "/var/lib/containerd", "tmpfs", "mode=711,size=90%", 0},
		{"tmpfs", "/var/lib/nerdctl", "tmpfs", "mode=755,size=90%", 0},
		{"tmpfs", "/var/lib/thinsnap", "tmpfs", "mode=755,size=90%", 0},
	}
}

func mountAll() error {
	for _, m := range mounts() {
		// A kernel without debugfs has no directory for it.
		if _, err := os.Stat(m.target); m.fstype == "debugfs" && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := m.mount(); err != nil {
			return err
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	if err := os.MkdirAll("/run/lock", 0o1777); err != nil {
		return fmt.Errorf("make /run/lock: %w", err)
	}
	// The kernel's devtmpfs does not make these links; bash's <(…) needs the first.
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, filepath.Join("/dev", name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make the links in /dev: %w", err)
		}
	}
	return nil
}

func (m mountPoint) mount() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return fmt.Errorf("make the mount point %s: %w", m.target, err)
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
	}
	return nil
}

// mountShare mounts a writable directory of the host, uncached, so that both sides see the same.
func mountShare(s wire.Share) error {
	if s.Tag == "" {
		return mountPoint{"none", s.Path, "hostfs", s.Path, 0}.mount()
	}
	return mountPoint{s.Tag, s.Path, "9p", "trans=virtio,version=9p2000.L,msize=524288,cache=none", 0}.mount()
}

// mountModules mounts the running kernel's modules, which are in the host's cache, where modprobe looks for them.
func mountModules(dir string) error {
	return mountPoint{dir, "/lib/modules", "", "", unix.MS_BIND}.mount()
}
