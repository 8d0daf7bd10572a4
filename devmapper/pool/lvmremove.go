package pool

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/log"
)

// RemoveLVM removes what CreateLVM has made, and what it had begun. The pool
// must not be in use. It can be repeated after a crash.
//
// Volumes that somebody else has made in the volume group are left, and then the
// group is, too.
func RemoveLVM(ctx context.Context, spec LVMSpec) error {
	if err := spec.remove(ctx); err != nil {
		return fmt.Errorf("remove pool %s: %w", spec.Name, err)
	}
	if err := os.Remove(spec.profile().File); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (s LVMSpec) remove(ctx context.Context) error {
	disks, err := pvs(ctx)
	if err != nil {
		return err
	}
	var disk *pvReport
	group := false
	for i, d := range disks {
		if d.UUID == s.PVUUID {
			disk = &disks[i]
		}
		group = group || s.made(d)
	}
	if disk == nil && s.VGUUID != "" {
		// It is gone: by an earlier call, or with the disk.
		if _, err := blockNumber(s.Device); err != nil {
			return fmt.Errorf("its disk is missing (%w): attach it, or, if it is lost, remove the root directory: %w", err, ErrWrongPool)
		}
	}
	if group {
		if left, err := s.removeVolumes(ctx); err != nil || left {
			return err
		}
		if err := (Step{Args: []string{"vgremove", "--yes", s.Name}}).do(ctx); err != nil {
			return err
		}
	}
	switch {
	case disk == nil:
		return nil
	case disk.unfinished():
		return Step{Args: []string{"pvremove", "--yes", "-ff", disk.Path}}.do(ctx)
	case disk.VG != "" && !s.made(*disk):
		return nil
	}
	return Step{Args: []string{"pvremove", "--yes", disk.Path}}.do(ctx)
}

// made tells whether a disk is in the group that was made for this pool.
func (s LVMSpec) made(d pvReport) bool {
	return d.VG == s.Name && hasTag(d.VGTags, s.tag()) && (s.VGUUID == "" || d.VGUUID == s.VGUUID)
}

// removeVolumes removes the pool, and tells whether anything else is left in the group.
func (s LVMSpec) removeVolumes(ctx context.Context) (left bool, err error) {
	volumes, err := lvs(ctx, s.Name)
	if err != nil {
		return false, err
	}
	for _, v := range volumes {
		switch {
		case !hasTag(v.VGTags, s.tag()):
		case s.LVUUID == "" && (v.Name == lvmPool || v.Name == lvmPoolMetadata), v.UUID == s.LVUUID:
			if err := (Step{Args: []string{"lvremove", "--yes", s.volume(v.Name)}}).do(ctx); err != nil {
				return false, err
			}
		default:
			log.G(ctx).WithField("volume", s.volume(v.Name)).Warn("LVM's volume group stays: there is a volume in it that thinsnap has not made")
			left = true
		}
	}
	return left, nil
}
