package guest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/thinsnap/thinsnap/integration/vm/internal/wire"
)

const basePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// setup sets the guest up as the host asked and returns the device paths of the disks.
func setup(p wire.SetupParams) ([]string, error) {
	if !p.Root {
		if err := layOut(p); err != nil {
			return nil, err
		}
	}
	disks := slices.Clone(p.Disks)
	for _, serial := range p.DiskSerials {
		dev, err := findDisk(serial)
		if err != nil {
			return nil, err
		}
		disks = append(disks, dev)
	}
	return disks, nil
}

// layOut does the work of a distribution's boot.
func layOut(p wire.SetupParams) error {
	if err := mountModules(p.Modules); err != nil {
		return err
	}
	// The kernel loads most modules on first use, but these make the device nodes through which they are first used.
	if err := run("modprobe", "-a", "loop", "dm-thin-pool"); err != nil {
		return err
	}
	for _, s := range p.Shares {
		if err := mountShare(s); err != nil {
			return err
		}
	}
	if p.Udev {
		return startUdev()
	}
	return nil
}

// environment is the environment of every program in the guest. The host's variables come last and win.
func environment(p wire.SetupParams, disks []string) []string {
	env := []string{
		"PATH=" + basePath,
		"HOME=/root",
		"USER=root",
		"TERM=dumb",
		// Programs that call the VM runner themselves already run in the right place.
		"THINSNAP_VM=never",
	}
	if !p.Root {
		env = append(env, "TMPDIR="+TempDir)
	}
	if !p.Root && !p.Udev {
		// Otherwise libdevmapper leaves device nodes to udevd, which does not run.
		env = append(env, "DM_DISABLE_UDEV=1")
	}
	for i, d := range disks {
		env = append(env, fmt.Sprintf("THINSNAP_DISK%d=%s", i, d))
	}
	return env
}

func startUdev() error {
	if err := run("/usr/lib/systemd/systemd-udevd", "--daemon", "--resolve-names=never"); err != nil {
		return err
	}
	if err := run("udevadm", "trigger", "--action=add"); err != nil {
		return err
	}
	return run("udevadm", "settle", "--timeout=60")
}

// findDisk waits for the virtio disk with the given serial number.
func findDisk(serial string) (string, error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		files, err := filepath.Glob("/sys/block/vd*/serial")
		if err != nil {
			return "", err
		}
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == serial {
				return filepath.Join("/dev", filepath.Base(filepath.Dir(f))), nil
			}
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("no virtio disk has the serial number %s", serial)
		}
	}
}

func run(name string, args ...string) error {
	path, err := lookPath(name, "/", []string{"PATH=" + basePath})
	if err != nil {
		return err
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
