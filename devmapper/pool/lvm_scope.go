package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
)

// lvmDevices are the nodes of the block devices that an LVM program may open. Others may hold
// hostile labels: a virtual machine can write LVM's label, and a volume group of any name, to a
// volume that is its disk.
type lvmDevices []string

// option returns the option that limits an LVM program to the devices, and keeps dmeventd's
// monitoring unchanged ([Pool.Monitor]). It replaces the filter, not the global_filter, of
// lvm.conf(5). If there is a devices file (lvmdevices(8)), LVM ignores both and opens only its
// devices.
func (d lvmDevices) option() []string {
	var accept strings.Builder
	for _, path := range d {
		fmt.Fprintf(&accept, "%q,", "a|^"+strings.NewReplacer(".", "[.]", "+", "[+]").Replace(path)+"$|")
	}
	return []string{"--config", "devices{filter=[" + accept.String() + `"r|.*|"]} activation{monitoring=0}`}
}

// command returns the arguments of an LVM program that is limited to the devices.
func (d lvmDevices) command(args ...string) []string {
	return slices.Concat(args[:1], d.option(), args[1:])
}

// hostDevices returns all block devices except the pools and volumes of thinsnap, of any root, the
// devices on them, and suspended mapped devices with nothing on them.
func hostDevices() (lvmDevices, error) {
	entries, err := os.ReadDir("/sys/class/block")
	if err != nil {
		return nil, err
	}
	var devices lvmDevices
	for _, e := range entries {
		dir, err := filepath.EvalSymlinks(filepath.Join("/sys/class/block", e.Name()))
		if err != nil {
			continue // removed meanwhile
		}
		size, err := os.ReadFile(filepath.Join(dir, "size"))
		if err != nil || strings.TrimSpace(string(size)) == "0" || onVolume(dir) || leftSuspended(dir) {
			continue
		}
		// sysfs writes "!" for "/" in names such as cciss/c0d0.
		devices = append(devices, "/dev/"+strings.ReplaceAll(e.Name(), "!", "/"))
	}
	return devices, nil
}

// leftSuspended reports whether the mapped device with that sysfs directory is suspended and
// nothing is on it. A crash of containerd's devmapper snapshotter leaves such volumes, and reading
// one blocks forever. A disk that multipathd suspends for a moment has LVM's volumes on it.
func leftSuspended(dir string) bool {
	suspended, err := os.ReadFile(filepath.Join(dir, "dm/suspended"))
	if err != nil || strings.TrimSpace(string(suspended)) != "1" {
		return false
	}
	above, err := os.ReadDir(filepath.Join(dir, "holders"))
	return err == nil && len(above) == 0
}

// onVolume reports whether a block device, given by its sysfs directory, is a mapped device of
// thinsnap or on one: as a partition, a mapped device or a loop device.
func onVolume(dir string) bool {
	if uuid, err := os.ReadFile(filepath.Join(dir, "dm/uuid")); err == nil && strings.HasPrefix(string(uuid), uuidStart) {
		return true
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		return onVolume(filepath.Dir(dir))
	}
	if file, err := os.ReadFile(filepath.Join(dir, "loop/backing_file")); err == nil {
		if number, err := blockNumber(strings.TrimSuffix(string(file), "\n")); err == nil {
			return onVolume(sysfsDir(number))
		}
	}
	below, err := os.ReadDir(filepath.Join(dir, "slaves"))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(below, func(e os.DirEntry) bool {
		lower, err := filepath.EvalSymlinks(filepath.Join(dir, "slaves", e.Name()))
		return err == nil && onVolume(lower)
	})
}

// lvmGroup is a volume group, as LVM reports it now.
type lvmGroup struct {
	name string
	// devices are the group's attached disks.
	devices lvmDevices
	free    uint64 // bytes
}

// findGroup looks for a volume group among the disks of the host; see groupOn.
func findGroup(ctx context.Context, is func(pvReport) bool) (lvmGroup, error) {
	disks, err := pvs(ctx)
	if err != nil {
		return lvmGroup{}, err
	}
	return groupOn(disks, is)
}

// groupOn returns the volume group on the disks for which is returns true. It returns ErrWrongPool
// if there is none.
func groupOn(disks []pvReport, is func(pvReport) bool) (lvmGroup, error) {
	var g lvmGroup
	for _, d := range disks {
		if !is(d) {
			continue
		}
		g.name, g.free = d.VG, d.VGFree
		number, err := blockNumber(d.Path)
		if errors.Is(err, os.ErrNotExist) {
			continue // LVM reports "[unknown]" as the path of a missing disk
		} else if err != nil {
			return g, err
		}
		path, err := blockdev.Path(deviceNumber(number))
		if err != nil {
			return g, err
		}
		g.devices = append(g.devices, path)
	}
	if g.name == "" {
		return g, fmt.Errorf("LVM finds no disk of the volume group: %w", ErrWrongPool)
	}
	return g, nil
}

func (g lvmGroup) step(args ...string) Step { return Step{Args: args, devices: g.devices} }
