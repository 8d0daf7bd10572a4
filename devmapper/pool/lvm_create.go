package pool

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

const (
	// leastDisk is the smallest disk that a pool is made on: of less, one percent
	// does not hold a pool's metadata.
	leastDisk = 1 << 30
	// mostMetadata is what is given to the metadata at most: the kernel uses no
	// more than 16 GiB, and LVM a little less.
	mostMetadata = 15 << 30
)

// ErrDeviceTaken is returned when there is something on a disk already, or
// somebody uses it.
var ErrDeviceTaken = errors.New("the disk is not free")

// CreateLVM makes the volume group and the pool in it, and returns the spec with
// their UUIDs. What was begun before, and is told by its UUID and its tags, is
// gone on with, so that it can be repeated after a crash.
//
// It is ErrDeviceTaken, and nothing was changed, if the disk is not free: with
// force, what is written on it is no hindrance, but LVM's volume groups, and who
// has it open, are. It is ErrNameTaken if there is another volume group of that name.
func CreateLVM(ctx context.Context, spec LVMSpec, force bool) (LVMSpec, error) {
	steps, found, err := spec.plan(ctx, force)
	if err != nil {
		return spec, fmt.Errorf("make pool %s: %w", spec.Name, err)
	}
	for _, step := range steps {
		if err := step.do(ctx); err != nil {
			return spec, fmt.Errorf("make pool %s: %w", spec.Name, err)
		}
	}
	if len(steps) > 0 {
		if found.volumes, err = lvs(ctx, spec.Name); err != nil {
			return spec, fmt.Errorf("make pool %s: %w", spec.Name, err)
		}
	}
	made := found.volume(lvmPool)
	if made == nil || !made.isPool() {
		return spec, fmt.Errorf("make pool %s: LVM did what it was told, but there is no pool %s: %w",
			spec.Name, spec.volume(lvmPool), ErrWrongPool)
	}
	spec.VGUUID, spec.LVUUID = made.VGUUID, made.UUID
	return spec, nil
}

// PlanLVM returns the steps that CreateLVM would take, and its refusals. It
// changes nothing.
func PlanLVM(ctx context.Context, spec LVMSpec, force bool) ([]Step, error) {
	steps, _, err := spec.plan(ctx, force)
	if err != nil {
		return nil, fmt.Errorf("make pool %s: %w", spec.Name, err)
	}
	return steps, nil
}

func (s LVMSpec) plan(ctx context.Context, force bool) ([]Step, survey, error) {
	found, err := s.look(ctx)
	if err != nil {
		return nil, found, err
	}
	if err := s.refuse(found, force); err != nil {
		return nil, found, err
	}
	return s.steps(found), found, nil
}

// ours tells whether the disk is one that was taken for this pool.
func (s LVMSpec) ours(found survey) bool { return found.disk != nil && found.disk.UUID == s.PVUUID }

// refuse says what stands against making the pool, or going on with it.
func (s LVMSpec) refuse(found survey, force bool) error {
	for _, g := range found.groups {
		if !hasTag(g.VGTags, s.tag()) {
			return fmt.Errorf("the volume group %s is there (on %s), and is not thinsnap's, or was made by another one: "+
				"choose another pool.name, or, if nothing in it is needed, remove the group with vgremove: %w", g.VG, g.Path, ErrNameTaken)
		}
	}
	taken := func(what, remedy string) error {
		return fmt.Errorf("%s: %s: %s: %w", s.Device, what, remedy, ErrDeviceTaken)
	}
	other := "choose another pool.direct_lvm.device, or "
	switch {
	case s.ours(found):
		if found.disk.VG != "" && !found.disk.unfinished() && !hasTag(found.disk.VGTags, s.tag()) {
			return taken("was put into the volume group "+found.disk.VG, other+"take it out of that with vgreduce")
		}
		return nil
	case found.moved != "":
		return fmt.Errorf("%s: the disk on which this pool was begun is %s now: set pool.direct_lvm.device to that, "+
			"or to a name of it that does not change: %w", s.Device, found.moved, ErrWrongPool)
	case len(found.groups) > 0:
		return fmt.Errorf("%s: this pool's volume group %s is on %s: go on with that disk: %w",
			s.Device, s.Name, found.groups[0].Path, ErrWrongPool)
	case found.disk != nil && found.disk.VG != "":
		return taken("is in the volume group "+found.disk.VG, other+"take it out of that with vgreduce, or remove the group with vgremove")
	case found.part != nil:
		return taken(found.part.Path+", which is a part of it, is used by LVM", other+"empty the disk with pvremove and wipefs")
	case found.taken != "":
		return taken(found.taken, other+"end that")
	case found.bytes < leastDisk:
		return taken(fmt.Sprintf("has %d bytes, and a pool needs %d", found.bytes, leastDisk), "choose a larger one")
	case len(found.signatures) > 0 && !force:
		return taken("there is something on it ("+strings.Join(found.signatures, ", ")+")",
			other+"have that overwritten with pool.direct_lvm.force = true")
	}
	return nil
}

// steps are what is left to do.
func (s LVMSpec) steps(found survey) []Step {
	var steps []Step
	program := func(args ...string) { steps = append(steps, Step{Args: args}) }
	if !s.ours(found) || found.disk.unfinished() {
		if len(found.signatures) > 0 || s.ours(found) {
			program("wipefs", "--all", "--quiet", s.Device)
		}
		program("pvcreate", "--yes", "--uuid", s.PVUUID, "--norestorefile", s.Device)
	}
	if len(found.groups) == 0 {
		program("vgcreate", "--yes", "--addtag", s.tag(), s.Name, s.Device)
	}
	made := found.volume(lvmPool)
	if made == nil || !made.isPool() {
		create := func(name string, size ...string) {
			if found.volume(name) == nil {
				program(append(append([]string{"lvcreate", "--yes", "--wipesignatures", "y", "--zero", "y",
					"--name", name}, size...), s.Name)...)
			}
		}
		create(lvmPool, "--extents", fmt.Sprintf("%d%%VG", s.DataPercent))
		create(lvmPoolMetadata, s.metadataSize(found.bytes)...)
		// A spare would be left as a volume lvol0, with no sign of whose it is, by a kill while LVM makes it.
		program("lvconvert", "--yes", "--zero", "y", "--poolmetadataspare", "n", "--chunksize", fmt.Sprintf("%dK", s.BlockBytes>>10),
			"--thinpool", s.volume(lvmPool), "--poolmetadata", s.volume(lvmPoolMetadata))
	}
	if made == nil || made.Profile != s.tag() || !hasTag(made.Tags, s.tag()) {
		steps = append(steps, s.profile())
		program("lvchange", "--addtag", s.tag(), "--metadataprofile", s.tag(), s.volume(lvmPool))
	}
	return steps
}

// metadataSize is lvcreate's option for the size of the metadata.
func (s LVMSpec) metadataSize(diskBytes uint64) []string {
	if diskBytes/100*s.MetadataPercent > mostMetadata {
		return []string{"--size", fmt.Sprintf("%dG", mostMetadata>>30)}
	}
	return []string{"--extents", fmt.Sprintf("%d%%VG", s.MetadataPercent)}
}

// volume returns the volume of that name, nil if there is none.
func (found survey) volume(name string) *lvReport {
	for i := range found.volumes {
		if found.volumes[i].Name == name {
			return &found.volumes[i]
		}
	}
	return nil
}

// isPool tells whether the volume is a thin pool.
func (v *lvReport) isPool() bool { return hasTag(v.Layout, "thin") && hasTag(v.Layout, "pool") }

// verify sees that the pool is the one that was made. It changes nothing.
func (s LVMSpec) verify(ctx context.Context) error {
	volumes, err := lvs(ctx, s.Name)
	if err != nil {
		return err
	}
	made := survey{volumes: volumes}.volume(lvmPool)
	switch {
	case made == nil:
		return fmt.Errorf("LVM knows of no %s: is its disk, which was %s when the pool was made, there? %w",
			s.volume(lvmPool), s.Device, ErrWrongPool)
	case made.UUID != s.LVUUID || made.VGUUID != s.VGUUID:
		return fmt.Errorf("%s has the UUIDs %s and %s, and should have %s and %s: %w",
			s.volume(lvmPool), made.VGUUID, made.UUID, s.VGUUID, s.LVUUID, ErrWrongPool)
	}
	return nil
}
