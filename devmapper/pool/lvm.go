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
	// lvmPool is LVM's name for the pool in its volume group, and lvmPoolMetadata for the metadata
	// until lvconvert combines the two.
	lvmPool, lvmPoolMetadata = "pool", "poolmeta"
	lvmProfiles              = "/etc/lvm/profile"
)

// LVMSpec describes a pool that LVM creates for thinsnap on a disk.
type LVMSpec struct {
	// ID identifies the pool; it is part of the UUID of each volume's device, and of LVM's tag on
	// the volume group and the pool.
	ID string
	// Name is the name of the volume group, and the prefix of the names of the volumes' devices.
	Name string
	// BlockBytes is the pool's block size: a multiple of 64 KiB, at most 1 GiB.
	BlockBytes uint64
	// Device is the path of the disk. LVM creates the pool on it, and later finds the disk by its
	// label. Remove checks that the path exists if LVM finds no disk.
	Device string
	// PVUUID is LVM's UUID for the disk, from NewPVUUID.
	PVUUID string
	// DataPercent and MetadataPercent are the shares of the disk for the pool's data and metadata, 1
	// to 99.
	DataPercent, MetadataPercent uint64
	// Threshold is the usage in percent at which LVM extends the pool by ExtendPercent of its size.
	Threshold, ExtendPercent uint64
	// VGUUID and LVUUID are LVM's UUIDs of the volume group and of the pool, empty until LVM has
	// created these.
	VGUUID, LVUUID string
}

// NewPVUUID returns a random UUID in LVM's format, for a disk.
func NewPVUUID() string {
	s := rand.Text() + rand.Text()
	return strings.Join([]string{s[:6], s[6:10], s[10:14], s[14:18], s[18:22], s[22:26], s[26:32]}, "-")
}

func (s LVMSpec) tag() string { return uuidStart + s.ID }

// vgLV returns VG/LV for an LVM volume in the group.
func (s LVMSpec) vgLV(name string) string { return s.Name + "/" + name }

// deviceName returns the name of the mapped device of an LVM volume. LVM doubles hyphens within
// names.
func deviceName(group, volume string) string {
	return strings.ReplaceAll(group, "-", "--") + "-" + strings.ReplaceAll(volume, "-", "--")
}

// poolUUID returns the UUID of the device with the thin-pool target. The device's name changes when
// LVM creates its first volume in the pool.
func (s LVMSpec) poolUUID() string {
	return lvmPrefix + strings.ReplaceAll(s.VGUUID+s.LVUUID, "-", "") + lvmLayer
}

// profile returns the step that configures when LVM extends the pool.
func (s LVMSpec) profile() Step {
	return Step{
		File: filepath.Join(lvmProfiles, s.tag()+".profile"),
		Content: fmt.Sprintf("activation {\n\tthin_pool_autoextend_threshold=%d\n\tthin_pool_autoextend_percent=%d\n}\n",
			s.Threshold, s.ExtendPercent),
	}
}

// writeProfile writes the profile. LVM reads it each time it checks the pool.
func (s LVMSpec) writeProfile() error {
	profile := s.profile()
	if err := writeFile(profile.File, profile.Content); err != nil {
		return fmt.Errorf("pool %s: %w", s.Name, err)
	}
	return nil
}

// Open has LVM activate a pool that Create created, or attaches to an active one.
//
// complete is true if the pool was used before. If its metadata then has no superblock, Open
// returns ErrWrongPool: the kernel would format the metadata, and all volumes would be lost.
func (s LVMSpec) Open(ctx context.Context, control *devmapper.Control, complete bool) (*Pool, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := s.OpenLoaded(control)
	if errors.Is(err, devmapper.ErrNotFound) {
		activateErr := s.activate(ctx, control, complete)
		p, err = s.OpenLoaded(control)
		if activateErr == nil {
			return p, err
		}
		// At boot udev has LVM activate the pool, too. activate may then have taken the metadata,
		// which is active first, for that of a killed process.
		if errors.Is(err, devmapper.ErrNotFound) {
			return nil, fmt.Errorf("activate pool %s: %w", s.Name, activateErr)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := s.writeProfile(); err != nil {
		return nil, err
	}
	return p, s.refresh(ctx, p)
}

// refresh has LVM resume a suspended pool: an LVM program was killed while it extended the pool. It
// waits for a program that still runs.
func (s LVMSpec) refresh(ctx context.Context, p *Pool) error {
	suspended, err := p.suspended()
	if err != nil || !suspended {
		return err
	}
	g, name, err := s.locate(ctx)
	if err != nil {
		return err
	}
	return g.step("lvchange", "--yes", "--refresh", g.name+"/"+name).do(ctx)
}

// OpenLoaded attaches to an active LVM pool. It returns devmapper.ErrNotFound if the pool is not
// active.
func (s LVMSpec) OpenLoaded(control *devmapper.Control) (*Pool, error) {
	dev, err := control.InfoByUUID(s.poolUUID())
	if err == nil && !dev.Live {
		err = fmt.Errorf("device %s has no table: %w", dev.Name, devmapper.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", s.Name, err)
	}
	p, err := newPool(control, dev, s.ID, s.Name, s.BlockBytes, &lvmBackend{LVMSpec: s})
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", s.Name, err)
	}
	return p, nil
}

type lvmBackend struct {
	LVMSpec
	freeSpace
}

func (b *lvmBackend) deactivate(ctx context.Context, _ *Pool) error {
	g, name, err := b.locate(ctx)
	if err != nil {
		return err
	}
	return g.activate(ctx, "n", name)
}

func (*lvmBackend) setTransactionID(p *Pool, from, to uint64) error {
	return p.thin.SetTransactionID(from, to)
}

func (s LVMSpec) activate(ctx context.Context, control *devmapper.Control, complete bool) error {
	g, name, err := s.locate(ctx)
	if err != nil {
		return err
	}
	if err := s.writeProfile(); err != nil {
		return err
	}
	// The pool cannot be activated if a killed process left its metadata active.
	if _, err := control.Info(deviceName(g.name, name+"_tmeta")); err == nil {
		if err := g.activate(ctx, "n", name+"_tmeta"); err != nil {
			return err
		}
	}
	if complete {
		if err := g.onMetadata(ctx, name, checkMetadataFile); err != nil {
			return err
		}
	}
	return g.activate(ctx, "y", name)
}

// activate has LVM activate ("y") or deactivate ("n") one of the group's volumes.
func (g lvmGroup) activate(ctx context.Context, active, volume string) error {
	return g.step("lvchange", "--yes", "--activate", active, g.name+"/"+volume).do(ctx)
}

// onMetadata calls f with the path of an inactive pool's metadata, which LVM activates read-only
// until f returns. The pool cannot be activated meanwhile.
func (g lvmGroup) onMetadata(ctx context.Context, pool string, f func(path string) error) (err error) {
	volume := pool + "_tmeta"
	if err := g.activate(ctx, "y", volume); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.activate(context.WithoutCancel(ctx), "n", volume)) }()
	path, err := filepath.EvalSymlinks(devmapper.NodePath(deviceName(g.name, volume)))
	if err != nil {
		return err
	}
	return f(path)
}

// RepairLines returns shell commands that repair the metadata of an inactive pool: they write new
// metadata to another volume, and have LVM swap the two. The returned volume then has the old
// metadata.
func (s LVMSpec) RepairLines() (lines []string, volume string) {
	mended, old := s.vgLV("pool_mended"), s.vgLV(lvmPool+"_tmeta")
	node := func(volume string) string { return devmapper.NodePath(deviceName(s.Name, volume)) }
	return []string{
		"lvcreate --yes --name pool_mended --wipesignatures n --zero n " +
			"--size $(lvs --noheadings --nosuffix --units b --options lv_metadata_size " + s.vgLV(lvmPool) +
			" | tr -d ' ')b " + s.Name,
		"lvchange --yes --activate y " + old,
		"thin_repair --input " + node(lvmPool+"_tmeta") + " --output " + node("pool_mended"),
		"thin_check --clear-needs-check-flag " + node("pool_mended"),
		"lvchange --yes --activate n " + old,
		"lvchange --yes --activate n " + mended,
		"lvconvert --yes --poolmetadataspare n --thinpool " + s.vgLV(lvmPool) + " --poolmetadata " + mended,
	}, mended
}

// OnMetadata calls f with the path of an inactive pool's metadata, which LVM activates read-only
// until f returns.
func (s LVMSpec) OnMetadata(ctx context.Context, f func(path string) error) error {
	g, name, err := s.locate(ctx)
	if err != nil {
		return err
	}
	return g.onMetadata(ctx, name, f)
}

// ReadMetadata calls read with the metadata of an inactive pool, which LVM activates read-only
// until read returns.
func (s LVMSpec) ReadMetadata(ctx context.Context, read func(*thinmeta.Metadata) error) error {
	return s.OnMetadata(ctx, func(path string) error {
		dev, err := blockdev.OpenDirect(path)
		if err != nil {
			return err
		}
		defer dev.Close()
		metadata, err := thinmeta.Open(dev)
		if err != nil {
			return fmt.Errorf("read the metadata of pool %s in %s: %w", s.Name, path, err)
		}
		return read(metadata)
	})
}
