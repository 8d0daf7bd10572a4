package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
)

// pvReport describes an LVM physical volume: a disk or a partition.
type pvReport struct {
	Path   string `json:"pv_name"`
	UUID   string `json:"pv_uuid"`
	VG     string `json:"vg_name"`
	VGUUID string `json:"vg_uuid"`
	VGTags string `json:"vg_tags"`
	VGFree uint64 `json:"vg_free,string"` // bytes
	// Copies is the number of metadata areas in use on the disk.
	Copies int `json:"pv_mda_used_count,string"`
}

// unfinished reports whether a vgcreate or a vgremove was killed on the disk. LVM marks a disk as
// used before it writes the group to it, and unmarks it after it has removed the group. LVM's
// programs reject some of these disks, even with -ff.
func (p pvReport) unfinished() bool { return p.VG == "[unknown]" && p.Copies > 0 }

// lvReport describes an LVM logical volume.
type lvReport struct {
	Name    string `json:"lv_name"`
	UUID    string `json:"lv_uuid"`
	Layout  string `json:"lv_layout"`
	Tags    string `json:"lv_tags"`
	Profile string `json:"lv_profile"`
	Pool    string `json:"pool_lv"` // of a thin volume
	VGUUID  string `json:"vg_uuid"`
	VGTags  string `json:"vg_tags"`
}

// reports is the output of pvs and lvs (lvmreport(7)).
type reports struct {
	Report []struct {
		PV []pvReport `json:"pv"`
		LV []lvReport `json:"lv"`
	} `json:"report"`
}

// report runs pvs or lvs on the devices. The result has at least one element.
func report(ctx context.Context, devices lvmDevices, args ...string) (reports, error) {
	var r reports
	out, err := run(ctx, devices, args...)
	if err != nil {
		return r, err
	}
	err = json.Unmarshal(out, &r)
	if err == nil && len(r.Report) == 0 {
		err = errors.New("it has no report")
	}
	if err != nil {
		return r, fmt.Errorf("read the output of %s: %w", args[0], err)
	}
	return r, nil
}

// pvs lists the host's physical volumes, without those in thinsnap's volumes.
func pvs(ctx context.Context) ([]pvReport, error) {
	devices, err := hostDevices()
	if err != nil {
		return nil, err
	}
	r, err := report(ctx, devices, "pvs", "--reportformat", "json", "--units", "b", "--nosuffix",
		"--options", "pv_name,pv_uuid,vg_name,vg_uuid,vg_tags,vg_free,pv_mda_used_count")
	if err != nil {
		return nil, err
	}
	return r.Report[0].PV, nil
}

// GroupDisks returns the attached disks of the volume groups with the given name that thinsnap made,
// for any root. missing is true if LVM misses a disk of them. Both are zero if there is no such group.
func GroupDisks(ctx context.Context, name string) (disks []string, missing bool, err error) {
	all, err := pvs(ctx)
	if err != nil {
		return nil, false, err
	}
	disks, missing = groupDisks(all, name)
	return disks, missing, nil
}

func groupDisks(all []pvReport, name string) (disks []string, missing bool) {
	ours := func(tag string) bool { return strings.HasPrefix(tag, uuidStart) }
	for _, d := range all {
		if d.VG != name || !slices.ContainsFunc(strings.Split(d.VGTags, ","), ours) {
			continue
		}
		if filepath.IsAbs(d.Path) {
			disks = append(disks, d.Path)
		} else {
			missing = true // "[unknown]"
		}
	}
	return disks, missing
}

// lvs lists the logical volumes in all groups with the given name on the devices; there may be
// several.
func lvs(ctx context.Context, devices lvmDevices, group string) ([]lvReport, error) {
	r, err := report(ctx, devices, "lvs", "--reportformat", "json",
		"--options", "lv_name,lv_uuid,lv_layout,lv_tags,lv_profile,pool_lv,vg_uuid,vg_tags", "--select", "vg_name="+group)
	if err != nil {
		return nil, err
	}
	return r.Report[0].LV, nil
}

// signatures returns the types of the signatures that wipefs finds on a device, such as those of
// file systems and partition tables.
func signatures(ctx context.Context, device string) ([]string, error) {
	out, err := run(ctx, nil, "wipefs", "--json", device)
	if err != nil || len(out) == 0 {
		return nil, err
	}
	var found struct {
		Signatures []struct {
			Type string `json:"type"`
		} `json:"signatures"`
	}
	if err := json.Unmarshal(out, &found); err != nil {
		return nil, fmt.Errorf("read the output of wipefs: %w", err)
	}
	var types []string
	for _, s := range found.Signatures {
		types = append(types, s.Type)
	}
	slices.Sort(types)
	return slices.Compact(types), nil
}

func hasTag(list, tag string) bool { return slices.Contains(strings.Split(list, ","), tag) }

// survey is the state of the disk for a pool, and of the pool's volume group.
type survey struct {
	bytes uint64 // of the disk
	// taken says how the disk is in use; "" if it is free.
	taken string
	// signatures are the types of the signatures on the disk.
	signatures []string
	// disk is the physical volume on the disk, and part one on a partition of it.
	disk, part *pvReport
	// moved is the path of another disk that has PVUUID.
	moved string
	// devices are all disks of the host.
	devices lvmDevices
	// groups are the disks of the volume groups that have the pool's name.
	groups  []pvReport
	volumes []lvReport
}

// look takes the survey. It changes nothing.
func (s LVMSpec) look(ctx context.Context) (survey, error) {
	number, err := blockNumber(s.Device)
	if err != nil {
		return survey{}, err
	}
	var found survey
	if found.bytes, err = blockdev.Size(s.Device); err != nil {
		return survey{}, err
	}
	if found.devices, err = hostDevices(); err != nil {
		return survey{}, err
	}
	all, err := pvs(ctx)
	if err != nil {
		return survey{}, err
	}
	for i := range all {
		if all[i].VG == s.Name {
			found.groups = append(found.groups, all[i])
		}
		other, err := blockNumber(all[i].Path)
		switch {
		case err != nil: // a missing disk
		case other == number:
			found.disk = &all[i]
		case all[i].UUID == s.PVUUID:
			found.moved = all[i].Path
		case wholeDisk(other) == sysfsDir(number):
			found.part = &all[i]
		}
	}
	if len(found.groups) > 0 {
		if found.volumes, err = lvs(ctx, found.devices, s.Name); err != nil {
			return survey{}, err
		}
	}
	if found.disk != nil && found.disk.UUID == s.PVUUID {
		return found, nil
	}
	if found.taken, err = takenBy(s.Device); err != nil {
		return survey{}, err
	}
	found.signatures, err = signatures(ctx, s.Device)
	return found, err
}

// blockNumber returns the device number of the block device at path.
func blockNumber(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, &os.PathError{Op: "stat", Path: path, Err: unix.ENOTBLK}
	}
	return st.Rdev, nil
}

// deviceNumber formats a device number as sysfs does.
func deviceNumber(n uint64) string { return fmt.Sprintf("%d:%d", unix.Major(n), unix.Minor(n)) }

// sysfsDir returns the sysfs directory of a block device.
func sysfsDir(number uint64) string {
	link := filepath.Join("/sys/dev/block", deviceNumber(number))
	if dir, err := filepath.EvalSymlinks(link); err == nil {
		return dir
	}
	return link
}

// wholeDisk returns the sysfs directory of a disk, or of the disk of a partition.
func wholeDisk(number uint64) string {
	dir := sysfsDir(number)
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		return filepath.Dir(dir)
	}
	return dir
}

// takenBy says how a device is in use: mounted, or below another device; "" if it is free.
func takenBy(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return "is in use: it is mounted, or below another device (see lsblk)", nil
	}
	if err != nil {
		return "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	return "", unix.Close(fd)
}
