package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/log"
)

// Remove removes the pool, the volume group and LVM's labels on the group's disks, also those of an
// unfinished Create. The pool must not be in use. A call can be repeated after a crash; it then keeps
// the labels of disks that were added later, because nothing shows any more that they were in the
// group.
//
// If the group has foreign volumes, they and the group remain. Otherwise Remove calls beforeGroup, unless it
// is nil, when the pool is removed and the group is not: after that, a missing group is no error.
func (s LVMSpec) Remove(ctx context.Context, beforeGroup func() error) error {
	if err := s.remove(ctx, beforeGroup); err != nil {
		return fmt.Errorf("remove pool %s: %w", s.Name, err)
	}
	if err := os.Remove(s.profile().File); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (s LVMSpec) remove(ctx context.Context, beforeGroup func() error) error {
	disks, err := pvs(ctx)
	if err != nil {
		return err
	}
	var disk *pvReport
	for i, d := range disks {
		if d.UUID == s.PVUUID {
			disk = &disks[i]
		}
	}
	for _, d := range disks {
		switch {
		case s.VGUUID == "" || d.VGUUID != s.VGUUID || s.owns(d):
		case d.VG != s.Name:
			return fmt.Errorf("its volume group %s was renamed to %s: rename it back with vgrename: %w", s.Name, d.VG,
				ErrWrongPool)
		default:
			return fmt.Errorf("its volume group %s lost its tag: vgchange --addtag %s %s: %w", s.Name, s.tag(), s.Name,
				ErrWrongPool)
		}
	}
	group, err := groupOn(disks, s.owns)
	if err != nil && !errors.Is(err, ErrWrongPool) {
		return err
	}
	if disk == nil && group.name == "" && s.VGUUID != "" {
		// An earlier call removed it, or the disk is missing.
		if _, err := blockNumber(s.Device); err != nil {
			return fmt.Errorf("LVM finds no disk of its volume group %s (%w): attach the group's disks, or, "+
				"if they are lost or the group was removed, remove the root directory: %w", s.Name, err, ErrWrongPool)
		}
	}
	if group.name != "" {
		if left, err := s.removeVolumes(ctx, group); err != nil || left {
			return err
		}
		if beforeGroup != nil {
			if err := beforeGroup(); err != nil {
				return err
			}
		}
		if left, err := s.removeGroup(ctx, group); err != nil || left {
			return err
		}
	}
	ours := disk != nil && (disk.VG == "" || disk.unfinished() || s.owns(*disk))
	if !ours && group.name == "" {
		return nil
	}
	if err := s.removeLinks(ctx); err != nil {
		return err
	}
	for _, d := range disks {
		if s.owns(d) && d.UUID != s.PVUUID {
			if err := removeLabel(ctx, d); err != nil {
				return err
			}
		}
	}
	if !ours {
		return nil
	}
	return removeLabel(ctx, *disk)
}

// RequireGroup fails with ErrWrongPool unless LVM finds the volume group that Create created.
func (s LVMSpec) RequireGroup(ctx context.Context) error {
	_, err := findGroup(ctx, func(d pvReport) bool { return d.VGUUID == s.VGUUID })
	if errors.Is(err, ErrWrongPool) {
		err = fmt.Errorf("LVM finds no volume group %s with UUID %s: attach the group's disks (see pvs and lsblk), or, "+
			"if they are lost or the group was removed, remove the root directory: %w", s.Name, s.VGUUID, ErrWrongPool)
	}
	if err != nil {
		return fmt.Errorf("remove pool %s: %w", s.Name, err)
	}
	return nil
}

// removeLabel removes LVM's label from a disk that was listed before its group was removed. Meanwhile
// the disk may have got another name or another use; a label with another use stays.
func removeLabel(ctx context.Context, listed pvReport) error {
	disks, err := pvs(ctx)
	if err != nil {
		return err
	}
	for _, d := range disks {
		if d.UUID != listed.UUID || !filepath.IsAbs(d.Path) {
			continue
		}
		switch {
		case d.VG == "":
			return Step{Args: []string{"pvremove", "--yes", d.Path}, devices: lvmDevices{d.Path}}.do(ctx)
		case d.unfinished() && listed.unfinished():
			return Step{Args: []string{"wipefs", "--all", "--quiet", d.Path}}.do(ctx)
		}
		log.G(ctx).WithField("disk", d.Path).WithField("group", d.VG).
			Warn("keeping LVM's label: the disk is in a volume group again")
		return nil
	}
	log.G(ctx).WithField("disk", listed.Path).WithField("uuid", listed.UUID).
		Warn("not removing LVM's label: LVM no longer finds the disk")
	return nil
}

// removeLinks removes the links in /dev that killed LVM programs left of the removed volume group.
// Without udevd nothing else removes them, and LVM creates no group of that name while they exist.
func (s LVMSpec) removeLinks(ctx context.Context) error {
	dir := filepath.Join("/dev", s.Name)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	// vgmknodes removes nodes without a device, to which the links point.
	devices, err := hostDevices()
	if err != nil {
		return err
	}
	if err := (Step{Args: []string{"vgmknodes"}, devices: devices}).do(ctx); err != nil {
		return err
	}
	return removeDangling(dir)
}

// removeDangling removes the dangling links in a directory, and then the directory if it is empty.
func removeDangling(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	others := false
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			others = true
		} else if err := os.Remove(path); err != nil {
			return err
		}
	}
	if others {
		return nil
	}
	return os.Remove(dir)
}

// owns reports whether a disk is in the group that was created for this pool.
func (s LVMSpec) owns(d pvReport) bool {
	return d.VG == s.Name && hasTag(d.VGTags, s.tag()) && (s.VGUUID == "" || d.VGUUID == s.VGUUID)
}

// removeVolumes removes the pool, and reports whether other volumes are left in the group.
func (s LVMSpec) removeVolumes(ctx context.Context, group lvmGroup) (left bool, err error) {
	volumes, err := lvs(ctx, group.devices, group.name)
	if err != nil {
		return false, err
	}
	for _, v := range volumes {
		if hasTag(v.VGTags, s.tag()) && v.Pool == lvmPool {
			return false, fmt.Errorf("the pool has a volume of LVM's, %s, which would be removed with it: "+
				"remove that volume with lvremove if it is not needed: %w", s.vgLV(v.Name), ErrDeviceTaken)
		}
	}
	for _, v := range volumes {
		switch {
		case !hasTag(v.VGTags, s.tag()):
		case s.LVUUID == "" && (v.Name == lvmPool || v.Name == lvmPoolMetadata), v.UUID == s.LVUUID:
			if err := group.step("lvremove", "--yes", s.vgLV(v.Name)).do(ctx); err != nil {
				return false, err
			}
		default:
			log.G(ctx).WithField("volume", s.vgLV(v.Name)).Warn("keeping LVM's volume group: it has a foreign volume")
			left = true
		}
	}
	return left, nil
}

// removeGroup removes the empty group, and reports whether it stays because a volume was created in
// it meanwhile. Without --yes vgremove asks before it removes volumes, and standard input has no answer.
func (s LVMSpec) removeGroup(ctx context.Context, group lvmGroup) (left bool, err error) {
	refusal := group.step("vgremove", group.name).do(ctx)
	if refusal == nil {
		return false, nil
	}
	volumes, err := lvs(ctx, group.devices, group.name)
	if err != nil {
		return false, errors.Join(refusal, err)
	}
	for _, v := range volumes {
		if hasTag(v.VGTags, s.tag()) {
			log.G(ctx).WithField("volume", s.vgLV(v.Name)).
				Warn("keeping LVM's volume group: a volume was created in it meanwhile")
			return true, nil
		}
	}
	return false, refusal
}
