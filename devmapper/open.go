package devmapper

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// miscMajor is the major number of the kernel's miscellaneous devices, such as the control device
// (linux/major.h).
const miscMajor = 10

// openControl opens the control device below dev. The descriptor is
// non-blocking so that the Go runtime can wait for events on it.
func openControl(dev, procMisc string) (*os.File, error) {
	path := filepath.Join(dev, unix.DM_DIR, unix.DM_CONTROL_NODE)
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeControlNode(path, procMisc); err != nil {
			return nil, err
		}
		file, err = os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	}
	switch {
	case err == nil:
		return file, nil
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return nil, fmt.Errorf("%w: %w: load it with `modprobe dm-thin-pool`, "+
			"or boot a kernel built with CONFIG_BLK_DEV_DM and CONFIG_DM_THIN_PROVISIONING", ErrUnavailable, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w: %w: run as root with CAP_SYS_ADMIN; "+
			"in a container, allow the device %s", ErrUnavailable, err, path)
	}
	return nil, fmt.Errorf("open the device-mapper control device: %w", err)
}

// makeControlNode creates the node that devtmpfs or udev did not.
func makeControlNode(path, procMisc string) error {
	minor, err := controlMinor(procMisc)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the directory of the device-mapper control device: %w", err)
	}
	err = unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(miscMajor, minor)))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make the device-mapper control device %s: %w", path, err)
	}
	return nil
}

// controlMinor finds the minor number of the control device in /proc/misc,
// whose lines are "<minor> <name>".
func controlMinor(procMisc string) (uint32, error) {
	f, err := os.Open(procMisc)
	if err != nil {
		return 0, fmt.Errorf("%w: find the control device: %w", ErrUnavailable, err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 2 && fields[1] == "device-mapper" {
			minor, err := strconv.ParseUint(fields[0], 10, 20)
			if err != nil {
				return 0, fmt.Errorf("read %s: %w", procMisc, err)
			}
			return uint32(minor), nil
		}
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("read %s: %w", procMisc, err)
	}
	return 0, fmt.Errorf("%w: this kernel has not loaded it: load it with `modprobe dm-thin-pool`, "+
		"or boot a kernel built with CONFIG_BLK_DEV_DM and CONFIG_DM_THIN_PROVISIONING", ErrUnavailable)
}
