package pool

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

const (
	// lvmPool is LVM's name for the pool in its volume group, and lvmPoolMetadata
	// that of its metadata until they are put together.
	lvmPool, lvmPoolMetadata = "pool", "poolmeta"
	// lvmProfiles is where LVM looks for profiles.
	lvmProfiles = "/etc/lvm/profile"
)

// LVMSpec describes a pool that LVM makes on a disk, and brings back.
type LVMSpec struct {
	// ID identifies the pool; it is part of the UUID of every volume's device,
	// and LVM's tag on what was made for the pool.
	ID string
	// Name is LVM's name for the volume group, and the start of the names of the
	// volumes' devices.
	Name string
	// BlockBytes is the pool's block size: a multiple of 64 KiB, at most 1 GiB.
	BlockBytes uint64
	// Device is the path of the disk. It matters only when the pool is made: LVM
	// knows the disk by what is written on it.
	Device string
	// PVUUID is LVM's UUID for the disk, chosen by NewPVUUID before it is made.
	PVUUID string
	// DataPercent and MetadataPercent are the shares of the disk that the pool's
	// data and metadata get, 1 to 99.
	DataPercent, MetadataPercent uint64
	// Threshold is how full, in percent, the pool is when LVM extends it by
	// ExtendPercent of its size.
	Threshold, ExtendPercent uint64
	// VGUUID and LVUUID are LVM's UUIDs of the volume group and of the pool in
	// it, empty until they are made.
	VGUUID, LVUUID string
}

// NewPVUUID returns a new UUID of LVM's kind for a disk.
func NewPVUUID() string {
	s := rand.Text() + rand.Text()
	return strings.Join([]string{s[:6], s[6:10], s[10:14], s[14:18], s[18:22], s[22:26], s[26:32]}, "-")
}

// tag is what LVM keeps with what was made for this pool.
func (s LVMSpec) tag() string { return uuidStart + s.ID }

// volume is LVM's name for one of its volumes in the group.
func (s LVMSpec) volume(name string) string { return s.Name + "/" + name }

// deviceName is the name of the mapped device of one of LVM's volumes: hyphens
// within names are doubled.
func (s LVMSpec) deviceName(volume string) string {
	return strings.ReplaceAll(s.Name, "-", "--") + "-" + volume
}

// poolUUID is the UUID of the device with the thin-pool target, whose name is
// another one while LVM has volumes of its own in the pool.
func (s LVMSpec) poolUUID() string {
	return "LVM-" + strings.ReplaceAll(s.VGUUID+s.LVUUID, "-", "") + "-tpool"
}

// profile is what LVM is told about extending the pool.
func (s LVMSpec) profile() Step {
	return Step{
		File: filepath.Join(lvmProfiles, s.tag()+".profile"),
		Content: fmt.Sprintf("activation {\n\tthin_pool_autoextend_threshold=%d\n\tthin_pool_autoextend_percent=%d\n}\n",
			s.Threshold, s.ExtendPercent),
	}
}

// writeProfile puts the profile in place, which LVM reads whenever it looks at
// the pool.
func (s LVMSpec) writeProfile() error {
	profile := s.profile()
	if err := writeFile(profile.File, profile.Content); err != nil {
		return fmt.Errorf("pool %s: %w", s.Name, err)
	}
	return nil
}

// OpenLVM has LVM bring a pool that CreateLVM has made into the kernel, or takes
// over one that is there.
//
// With formed, the pool is expected to have been used: metadata that holds no
// pool is then ErrWrongPool, because the kernel would format it, and so lose
// every volume without a word.
func OpenLVM(ctx context.Context, control *devmapper.Control, spec LVMSpec, formed bool) (*Pool, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := OpenLoadedLVM(control, spec)
	if errors.Is(err, devmapper.ErrNotFound) {
		if err := spec.activate(ctx, control, formed); err != nil {
			return nil, fmt.Errorf("activate pool %s: %w", spec.Name, err)
		}
		return OpenLoadedLVM(control, spec)
	}
	if err != nil {
		return nil, err
	}
	if err := spec.writeProfile(); err != nil {
		return nil, err
	}
	return p, p.refreshLVM(ctx)
}

// refreshLVM has LVM resume the pool, if that was killed while it made it larger. For
// one that is still at it, LVM waits.
func (p *Pool) refreshLVM(ctx context.Context) error {
	dev, err := p.control.InfoByUUID(p.uuid)
	if err != nil || !dev.Suspended {
		return err
	}
	// LVM would read the pool's volumes, which wait for the pool.
	volumes := strings.NewReplacer(".", "[.]", "+", "[+]").Replace(p.name)
	filter := fmt.Sprintf(`devices/filter=["r|^/dev/mapper/%s-snap-|"]`, volumes)
	return Step{Args: []string{"lvchange", "--yes", "--config", filter, "--refresh", p.lvm.volume(lvmPool)}}.do(ctx)
}

// OpenLoadedLVM takes over a pool of LVM's that is in the kernel. It returns
// devmapper.ErrNotFound if it is not.
func OpenLoadedLVM(control *devmapper.Control, spec LVMSpec) (*Pool, error) {
	p := &Pool{control: control, id: spec.ID, name: spec.Name, uuid: spec.poolUUID(), blockBytes: spec.BlockBytes, lvm: &spec}
	if err := p.adoptLVM(); err != nil {
		return nil, fmt.Errorf("pool %s: %w", spec.Name, err)
	}
	return p, nil
}

// adoptLVM fills in what the kernel has of the pool.
func (p *Pool) adoptLVM() error {
	dev, err := p.control.InfoByUUID(p.uuid)
	if err != nil {
		return err
	}
	if !dev.Live {
		return fmt.Errorf("device %s has no table: %w", dev.Name, devmapper.ErrNotFound)
	}
	p.device, p.number = dev.Name, dev.Number()
	p.thin = thin.NewPool(p.control, dev.Name)
	table, err := p.table()
	if err != nil {
		return err
	}
	if table.SkipBlockZeroing {
		return fmt.Errorf("device %s hands out blocks with what others have left in them: "+
			"have LVM zero them with `lvchange --zero y %s`: %w", dev.Name, p.lvm.volume(lvmPool), ErrWrongPool)
	}
	b := &p.backing
	b.DataDevice, b.MetadataDevice = table.Data, table.Metadata
	if b.DataPath, err = blockdev.Path(table.Data); err != nil {
		return err
	}
	if b.MetadataPath, err = blockdev.Path(table.Metadata); err != nil {
		return err
	}
	if b.DataDisks, err = p.below(lvmPool + "_tdata"); err != nil {
		return err
	}
	b.MetadataDisks, err = p.below(lvmPool + "_tmeta")
	return err
}

// below returns the nodes of what one of LVM's volumes lies on.
func (p *Pool) below(volume string) ([]string, error) {
	numbers, err := p.control.Deps(p.lvm.deviceName(volume))
	if err != nil {
		return nil, err
	}
	paths := make([]string, 0, len(numbers))
	for _, n := range numbers {
		path, err := blockdev.Path(deviceNumber(n))
		if err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// activate has LVM bring the pool into the kernel.
func (s LVMSpec) activate(ctx context.Context, control *devmapper.Control, formed bool) error {
	if err := s.verify(ctx); err != nil {
		return err
	}
	if err := s.writeProfile(); err != nil {
		return err
	}
	// One that was read, by somebody who did not come to an end, is in the pool's way.
	if _, err := control.Info(s.deviceName(lvmPool + "_tmeta")); err == nil {
		if err := s.lvchange(ctx, "n", lvmPool+"_tmeta"); err != nil {
			return err
		}
	}
	if formed {
		if err := s.onMetadata(ctx, checkMetadataFile); err != nil {
			return err
		}
	}
	return s.lvchange(ctx, "y", lvmPool)
}

// deactivate has LVM take the pool out of the kernel.
func (s LVMSpec) deactivate(ctx context.Context) error { return s.lvchange(ctx, "n", lvmPool) }

func (s LVMSpec) lvchange(ctx context.Context, active, volume string) error {
	return Step{Args: []string{"lvchange", "--yes", "--activate", active, s.volume(volume)}}.do(ctx)
}

// onMetadata calls f with the path of the pool's metadata, which can only be
// read. The pool must not be in the kernel, and cannot be brought there meanwhile.
func (s LVMSpec) onMetadata(ctx context.Context, f func(path string) error) (err error) {
	volume := lvmPool + "_tmeta"
	if err := s.lvchange(ctx, "y", volume); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.lvchange(context.WithoutCancel(ctx), "n", volume)) }()
	path, err := filepath.EvalSymlinks(devmapper.NodePath(s.deviceName(volume)))
	if err != nil {
		return err
	}
	return f(path)
}

// RepairLines are lines of shell that repair the metadata of a pool that is not in the
// kernel: they write it anew to a volume beside it, and have LVM exchange the two.
// The volume, whose name is returned, has the old metadata then.
func (s LVMSpec) RepairLines() (lines []string, volume string) {
	mended, old := s.volume("pool_mended"), s.volume(lvmPool+"_tmeta")
	node := func(volume string) string { return devmapper.NodePath(s.deviceName(volume)) }
	return []string{
		"lvcreate --yes --name pool_mended --wipesignatures n --zero n " +
			"--size $(lvs --noheadings --nosuffix --units b --options lv_metadata_size " + s.volume(lvmPool) + " | tr -d ' ')b " + s.Name,
		"lvchange --yes --activate y " + old,
		"thin_repair --input " + node(lvmPool+"_tmeta") + " --output " + node("pool_mended"),
		"thin_check --clear-needs-check-flag " + node("pool_mended"),
		"lvchange --yes --activate n " + old,
		"lvchange --yes --activate n " + mended,
		"lvconvert --yes --poolmetadataspare n --thinpool " + s.volume(lvmPool) + " --poolmetadata " + mended,
	}, mended
}

// OnMetadataLVM calls f with the path of the metadata of a pool of LVM's that is not in
// the kernel, which LVM shows there, for reading only, until f returns.
func OnMetadataLVM(ctx context.Context, spec LVMSpec, f func(path string) error) error {
	if err := spec.verify(ctx); err != nil {
		return err
	}
	return spec.onMetadata(ctx, f)
}

// ReadMetadataLVM calls read with the metadata of a pool of LVM's that is not in
// the kernel, for which LVM shows it there for the moment.
func ReadMetadataLVM(ctx context.Context, spec LVMSpec, read func(*thinmeta.Metadata) error) error {
	return OnMetadataLVM(ctx, spec, func(path string) error {
		dev, err := blockdev.OpenDirect(path)
		if err != nil {
			return err
		}
		defer dev.Close()
		metadata, err := thinmeta.Open(dev)
		if err != nil {
			return fmt.Errorf("read the metadata of pool %s in %s: %w", spec.Name, path, err)
		}
		return read(metadata)
	})
}
