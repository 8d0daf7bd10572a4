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

// poolUUID is the UUID of the device with the thin-pool target. Its name changes when LVM makes its
// first volume in the pool.
func (s LVMSpec) poolUUID() string {
	return lvmPrefix + strings.ReplaceAll(s.VGUUID+s.LVUUID, "-", "") + lvmLayer
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

// OpenLVM has LVM activate a pool that CreateLVM has made, or attaches to an active one.
//
// With formed, the pool has been used before: metadata without a superblock is then ErrWrongPool,
// because the kernel would format it and so lose all volumes.
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
	return p, spec.refresh(ctx, p)
}

// refresh has LVM resume the pool if it is suspended: a program of LVM was killed while it extended
// the pool. LVM waits for one that still runs.
func (s LVMSpec) refresh(ctx context.Context, p *Pool) error {
	suspended, err := p.suspended()
	if err != nil || !suspended {
		return err
	}
	// LVM would read the pool's volumes, which wait for the pool.
	volumes := strings.NewReplacer(".", "[.]", "+", "[+]").Replace(s.Name)
	filter := fmt.Sprintf(`devices/filter=["r|^/dev/mapper/%s-snap-|"]`, volumes)
	return Step{Args: []string{"lvchange", "--yes", "--config", filter, "--refresh", s.volume(lvmPool)}}.do(ctx)
}

// OpenLoadedLVM attaches to an active pool of LVM's. It returns devmapper.ErrNotFound if the pool
// is not active.
func OpenLoadedLVM(control *devmapper.Control, spec LVMSpec) (*Pool, error) {
	dev, err := control.InfoByUUID(spec.poolUUID())
	if err == nil && !dev.Live {
		err = fmt.Errorf("device %s has no table: %w", dev.Name, devmapper.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", spec.Name, err)
	}
	p, err := newPool(control, dev, spec.ID, spec.Name, spec.BlockBytes, lvmBackend{spec})
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", spec.Name, err)
	}
	return p, nil
}

// lvmBackend is the backend of a pool that thinsnap had LVM make.
type lvmBackend struct{ LVMSpec }

func (b lvmBackend) deactivate(ctx context.Context, _ *Pool) error {
	return b.lvchange(ctx, "n", lvmPool)
}

func (lvmBackend) setTransactionID(p *Pool, from, to uint64) error {
	return p.thin.SetTransactionID(from, to)
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
