package pool

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

const (
	// minDisk is the size of the smallest disk for a pool: one percent of a smaller disk is too
	// small for the metadata.
	minDisk = 1 << 30
	// maxMetadata is the largest size of the metadata: the kernel uses at most 16 GiB, and LVM a
	// little less.
	maxMetadata = 15 << 30
)

// ErrDeviceTaken is returned for a disk that is in use, not empty or too small, and by Remove if
// LVM has volumes of its own in the pool.
var ErrDeviceTaken = errors.New("the disk is not free")

// ErrGroupTaken is returned by Create and Plan when a foreign volume group has the name of the pool.
var ErrGroupTaken = errors.New("the name of the volume group is taken")

// Create creates the volume group and the pool in it, and returns the spec with their UUIDs. After
// a crash a second call does the rest: it recognises the disk by its UUID and the group by its tag.
//
// It returns ErrDeviceTaken, with nothing changed, if the disk is not free. With force it
// overwrites file systems and partition tables, but neither LVM's volume groups nor a disk that is
// open. It returns ErrGroupTaken if another volume group has the name.
func (s LVMSpec) Create(ctx context.Context, force bool) (LVMSpec, error) {
	steps, found, err := s.plan(ctx, force)
	if err != nil {
		return s, fmt.Errorf("make pool %s: %w", s.Name, err)
	}
	for _, step := range steps {
		if err := step.do(ctx); err != nil {
			return s, fmt.Errorf("make pool %s: %w", s.Name, err)
		}
	}
	if len(steps) > 0 {
		if found.volumes, err = lvs(ctx, found.devices, s.Name); err != nil {
			return s, fmt.Errorf("make pool %s: %w", s.Name, err)
		}
	}
	made := found.volume(lvmPool)
	if made == nil || !made.isPool() {
		return s, fmt.Errorf("make pool %s: all commands succeeded, but LVM finds no pool %s: %w",
			s.Name, s.vgLV(lvmPool), ErrWrongPool)
	}
	s.VGUUID, s.LVUUID = made.VGUUID, made.UUID
	return s, nil
}

// Plan returns the steps that Create would take, or its error. It changes nothing.
func (s LVMSpec) Plan(ctx context.Context, force bool) ([]Step, error) {
	steps, _, err := s.plan(ctx, force)
	if err != nil {
		return nil, fmt.Errorf("make pool %s: %w", s.Name, err)
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

// ours reports whether the disk was initialised for this pool.
func (s LVMSpec) ours(found survey) bool { return found.disk != nil && found.disk.UUID == s.PVUUID }

// refuse returns the reason why the pool cannot be created on the disk, or nil.
func (s LVMSpec) refuse(found survey, force bool) error {
	for _, g := range found.groups {
		if !hasTag(g.VGTags, s.tag()) {
			return fmt.Errorf("the volume group %s exists (on %s), and was not made for this root: "+
				"choose another pool.name, or, if its data is not needed, remove the group "+
				"with vgremove: %w", g.VG, g.Path, ErrGroupTaken)
		}
	}
	taken := func(what, remedy string) error {
		return fmt.Errorf("%s: %s: %s: %w", s.Device, what, remedy, ErrDeviceTaken)
	}
	other := "choose another pool.direct_lvm.device, or "
	switch {
	case s.ours(found):
		if found.disk.VG != "" && !found.disk.unfinished() && !hasTag(found.disk.VGTags, s.tag()) {
			return taken("was added to the volume group "+found.disk.VG, other+"remove it from the group with vgreduce")
		}
		return nil
	case found.moved != "":
		return fmt.Errorf("%s: this pool's disk is now %s: set pool.direct_lvm.device to that, "+
			"or to its name in /dev/disk/by-id: %w", s.Device, found.moved, ErrWrongPool)
	case len(found.groups) > 0:
		return fmt.Errorf("%s: this pool's volume group %s is on %s: use that disk: %w",
			s.Device, s.Name, found.groups[0].Path, ErrWrongPool)
	case found.disk != nil && found.disk.VG != "":
		return taken("is in the volume group "+found.disk.VG,
			other+"remove it from the group with vgreduce, or remove the group with vgremove")
	case found.part != nil:
		return taken("its partition "+found.part.Path+" is used by LVM", other+"clear the disk with pvremove and wipefs")
	case found.taken != "":
		return taken(found.taken, other+"stop that use")
	case found.bytes < minDisk:
		return taken(fmt.Sprintf("has %d bytes, but a pool needs %d", found.bytes, minDisk), "choose a larger disk")
	case len(found.signatures) > 0 && !force:
		return taken("is not empty ("+strings.Join(found.signatures, ", ")+")",
			other+"overwrite it with pool.direct_lvm.force = true")
	}
	return nil
}

// steps returns the remaining steps.
func (s LVMSpec) steps(found survey) []Step {
	var steps []Step
	program := func(args ...string) { steps = append(steps, Step{Args: args, devices: found.devices}) }
	if !s.ours(found) || found.disk.unfinished() {
		if len(found.signatures) > 0 || s.ours(found) {
			steps = append(steps, Step{Args: []string{"wipefs", "--all", "--quiet", s.Device}})
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
		// No metadata spare: if LVM is killed while creating it, an untagged volume lvol0 remains.
		program("lvconvert", "--yes", "--zero", "y", "--poolmetadataspare", "n", "--chunksize",
			fmt.Sprintf("%dK", s.BlockBytes>>10),
			"--thinpool", s.vgLV(lvmPool), "--poolmetadata", s.vgLV(lvmPoolMetadata))
	}
	if made == nil || made.Profile != s.tag() || !hasTag(made.Tags, s.tag()) {
		steps = append(steps, s.profile())
		program("lvchange", "--addtag", s.tag(), "--metadataprofile", s.tag(), s.vgLV(lvmPool))
	}
	return steps
}

// metadataSize returns lvcreate's option for the size of the metadata.
func (s LVMSpec) metadataSize(diskBytes uint64) []string {
	if diskBytes/100*s.MetadataPercent > maxMetadata {
		return []string{"--size", fmt.Sprintf("%dG", maxMetadata>>30)}
	}
	return []string{"--extents", fmt.Sprintf("%d%%VG", s.MetadataPercent)}
}

func (found survey) volume(name string) *lvReport {
	for i := range found.volumes {
		if found.volumes[i].Name == name {
			return &found.volumes[i]
		}
	}
	return nil
}

func (v *lvReport) isPool() bool { return hasTag(v.Layout, "thin") && hasTag(v.Layout, "pool") }

// Find fails with ErrWrongPool unless LVM finds the pool. It changes nothing. The pool's disk may have
// been replaced since Create.
func (s LVMSpec) Find(ctx context.Context) error {
	if _, _, err := s.locate(ctx); err != nil {
		return fmt.Errorf("pool %s: %w", s.Name, err)
	}
	return nil
}

// locate returns the volume group and LVM's name of the pool. It finds both by their UUIDs, because
// they may have been renamed.
func (s LVMSpec) locate(ctx context.Context) (g lvmGroup, pool string, err error) {
	missing := func(what string, err error) error {
		return fmt.Errorf("LVM finds no %s with UUID %s: attach its disk, which was %s when the pool was made: %w",
			what, s.VGUUID, s.Device, err)
	}
	if g, err = findGroup(ctx, func(d pvReport) bool { return d.VGUUID == s.VGUUID }); errors.Is(err, ErrWrongPool) {
		return g, "", missing("volume group "+s.Name, err)
	} else if err != nil {
		return g, "", err
	}
	volumes, err := lvs(ctx, g.devices, g.name)
	if err != nil {
		return g, "", err
	}
	for _, v := range volumes {
		if v.UUID == s.LVUUID {
			return g, v.Name, nil
		}
	}
	return g, "", fmt.Errorf("LVM finds no pool with UUID %s in volume group %s: %w", s.LVUUID, g.name, ErrWrongPool)
}
