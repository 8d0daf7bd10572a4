package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

const (
	// lvmPrefix and lvmLayer begin and end LVM's UUID of the device with the thin-pool
	// target. While LVM has volumes of its own in the pool that device's name ends with
	// the same, and the name without it is another device's, which shows it.
	lvmPrefix, lvmLayer = "LVM-", "-tpool"
	mapperDir           = "/dev/mapper/"
)

var (
	// ErrNotActive is returned when a pool that somebody else made is not in the kernel.
	ErrNotActive = errors.New("the pool is not there")
	// ErrNotOurs is returned when a pool that somebody else made is to be changed as such.
	ErrNotOurs = errors.New("thinsnap does not do that to a pool that it has not made")
)

// ExistingSpec describes a pool that somebody else made. Nothing of it is changed but
// the volumes that are made in it through a Pool.
type ExistingSpec struct {
	// ID is part of the UUID of every volume's device.
	ID string
	// Name is what the names of the volumes' devices begin with.
	Name string
	// Device is what the pool is called; see DeviceName.
	Device string
	// UUID and BlockBytes are the UUID of the pool's mapped device, which may have none,
	// and the block size. They are empty and 0 until the pool was found once.
	UUID       string
	BlockBytes uint64
}

// DeviceName returns the name of the mapped device that is called by its name, by its
// path below /dev/mapper, or, for LVM's, VG/LV or /dev/VG/LV.
func DeviceName(device string) string {
	if name, ok := strings.CutPrefix(device, mapperDir); ok {
		return name
	}
	vg, lv, ok := strings.Cut(strings.TrimPrefix(device, "/dev/"), "/")
	if !ok {
		return device
	}
	return strings.ReplaceAll(vg, "-", "--") + "-" + strings.ReplaceAll(lv, "-", "--")
}

// lvmVolume returns VG/LV for the name of a mapped device of LVM's.
func lvmVolume(name string) (string, bool) {
	const hyphen = "\x00"
	parts := strings.Split(strings.ReplaceAll(strings.TrimSuffix(name, lvmLayer), "--", hyphen), "-")
	if len(parts) != 2 || parts[0] == "" || parts[1] == "" {
		return "", false
	}
	return strings.ReplaceAll(parts[0]+"/"+parts[1], hyphen, "-"), true
}

// volume returns LVM's name of the pool, if it is LVM's as far as that is known.
func (s ExistingSpec) volume() (string, bool) {
	calledSo := s.BlockBytes == 0 && strings.Contains(s.Device, "/") && !strings.HasPrefix(s.Device, mapperDir)
	if !calledSo && !strings.HasPrefix(s.UUID, lvmPrefix) {
		return "", false
	}
	return lvmVolume(DeviceName(s.Device))
}

// OpenExisting takes over a pool that somebody else made. One of LVM's that is not in the
// kernel LVM is told to activate; any other is ErrNotActive then. It returns the spec with
// what was found. If that is not what the spec has of it, the error is ErrWrongPool.
func OpenExisting(ctx context.Context, control *devmapper.Control, spec ExistingSpec) (*Pool, ExistingSpec, error) {
	if err := ctx.Err(); err != nil {
		return nil, spec, err
	}
	p, found, err := OpenLoadedExisting(control, spec)
	if errors.Is(err, devmapper.ErrNotFound) {
		if err := spec.activate(ctx, err); err != nil {
			return nil, spec, err
		}
		p, found, err = OpenLoadedExisting(control, spec)
	}
	if err == nil && spec.BlockBytes == 0 {
		err = p.requireNotMade(ctx)
	}
	return p, found, err
}

// activate has LVM bring the pool into the kernel, in which it was not found.
func (s ExistingSpec) activate(ctx context.Context, notFound error) error {
	volume, isLVM := s.volume()
	if !isLVM {
		return fmt.Errorf("%w: %w: whoever made it has to activate it; if LVM did, with `vgchange -ay VG`", notFound, ErrNotActive)
	}
	step := Step{Args: []string{"lvchange", "--yes", "--activate", "y", volume}}
	if err := step.do(ctx); err != nil {
		return fmt.Errorf("%w: %w: activate it with `lvchange -ay %s`, which failed: %w", notFound, ErrNotActive, volume, err)
	}
	return nil
}

// requireNotMade refuses a pool that thinsnap had LVM make for another root, as far as
// LVM shows that.
func (p *Pool) requireNotMade(ctx context.Context) error {
	volume, ok := lvmVolume(p.Name())
	if !ok || !strings.HasPrefix(p.uuid, lvmPrefix) {
		return nil
	}
	r, err := report(ctx, "lvs", "--reportformat", "json", "--options", "lv_tags,vg_tags", volume)
	if err != nil {
		log.G(ctx).WithError(err).WithField("pool", volume).Warn("LVM does not show whose pool it is")
		return nil
	}
	for _, v := range r.Report[0].LV {
		if strings.Contains(v.Tags+","+v.VGTags, uuidStart) {
			return fmt.Errorf("pool %s was made by thinsnap for another root (LVM's tags are %q): %w", volume, v.Tags+","+v.VGTags, ErrWrongPool)
		}
	}
	return nil
}

// OpenLoadedExisting is OpenExisting for a pool that is in the kernel. It returns
// devmapper.ErrNotFound if it is not.
func OpenLoadedExisting(control *devmapper.Control, spec ExistingSpec) (*Pool, ExistingSpec, error) {
	p, found, err := spec.open(control)
	if err != nil {
		return nil, spec, fmt.Errorf("pool %s: %w", spec.Device, err)
	}
	return p, found, nil
}

func (s ExistingSpec) open(control *devmapper.Control) (*Pool, ExistingSpec, error) {
	dev, err := s.find(control)
	if err != nil {
		return nil, s, err
	}
	if strings.HasPrefix(dev.UUID, uuidStart) {
		return nil, s, fmt.Errorf("device %s is a pool that thinsnap made for another root: %w", dev.Name, ErrWrongPool)
	}
	if dev.Suspended {
		return nil, s, fmt.Errorf("device %s is suspended: whoever did that has to resume it, "+
			"or `dmsetup resume %s`, if that is at an end: %w", dev.Name, dev.Name, ErrNotActive)
	}
	p := &Pool{
		control: control, id: s.ID, name: s.Name, device: dev.Name, uuid: dev.UUID, number: dev.Number(), existing: true,
	}
	if dev.UUID != "" {
		// LVM changes the name when it makes its first volume in the pool.
		p.device = devmapper.ByUUID(dev.UUID)
	}
	p.thin = thin.NewPool(control, p.device)
	if p.blockBytes = s.BlockBytes; p.blockBytes == 0 {
		table, err := livePoolTable(control, p.device)
		if err != nil {
			return nil, s, err
		}
		p.blockBytes = uint64(table.BlockSectors) * SectorBytes
	}
	table, err := p.table()
	if err != nil {
		return nil, s, err
	}
	if table.SkipBlockZeroing {
		return nil, s, fmt.Errorf("device %s hands out blocks with what others have left in them: %s: %w",
			dev.Name, zeroingRemedy(dev), ErrWrongPool)
	}
	if err := p.lookBelow(table); err != nil {
		return nil, s, err
	}
	s.UUID, s.BlockBytes = dev.UUID, p.blockBytes
	return p, s, nil
}

func zeroingRemedy(dev devmapper.Device) string {
	if volume, ok := lvmVolume(dev.Name); ok && strings.HasPrefix(dev.UUID, lvmPrefix) {
		return "have LVM zero them with `lvchange --zero y " + volume + "`"
	}
	return "load its table without skip_block_zeroing"
}

// find returns the mapped device of the pool, having seen that it is the one that was
// found before, if it was.
func (s ExistingSpec) find(control *devmapper.Control) (devmapper.Device, error) {
	name := DeviceName(s.Device)
	if s.UUID == "" {
		dev, err := findPool(control, name)
		if err == nil && s.BlockBytes != 0 && dev.UUID != "" {
			err = fmt.Errorf("device %s has UUID %q, and should have none: %w", dev.Name, dev.UUID, ErrWrongPool)
		}
		return dev, err
	}
	dev, err := control.InfoByUUID(s.UUID)
	if errors.Is(err, devmapper.ErrNotFound) {
		if other, findErr := findPool(control, name); findErr == nil || errors.Is(findErr, ErrWrongPool) {
			return dev, fmt.Errorf("device %s has UUID %q, and should have %q: %w", name, other.UUID, s.UUID, ErrWrongPool)
		}
		return dev, err
	}
	if err != nil {
		return dev, err
	}
	if dev.Name != name && strings.TrimSuffix(dev.Name, lvmLayer) != strings.TrimSuffix(name, lvmLayer) {
		return dev, fmt.Errorf("the device with its UUID %q is called %s, and should be called %s: %w", s.UUID, dev.Name, name, ErrWrongPool)
	}
	if !dev.Live {
		return dev, fmt.Errorf("device %s has no table: %w", dev.Name, devmapper.ErrNotFound)
	}
	return dev, nil
}

// findPool returns the device of that name with a thin-pool target, or the one that LVM
// has put below it.
func findPool(control *devmapper.Control, name string) (devmapper.Device, error) {
	dev, targets, err := control.Table(name + lvmLayer)
	if err == nil && strings.HasPrefix(dev.UUID, lvmPrefix) && len(targets) == 1 && targets[0].Type == thin.PoolType {
		return dev, nil
	}
	dev, targets, err = control.Table(name)
	switch {
	case err != nil:
		return dev, err
	case !dev.Live:
		return dev, fmt.Errorf("device %s has no table: %w", name, devmapper.ErrNotFound)
	case len(targets) != 1 || targets[0].Type != thin.PoolType:
		return dev, fmt.Errorf("device %s is no thin pool: %w", name, ErrWrongPool)
	}
	return dev, nil
}

// lookBelow fills in what the pool lies on.
func (p *Pool) lookBelow(table thin.PoolTable) (err error) {
	b := &p.backing
	b.DataDevice, b.MetadataDevice = table.Data, table.Metadata
	if b.DataPath, b.DataFile, b.DataDisks, err = below(table.Data); err != nil {
		return err
	}
	b.MetadataPath, b.MetadataFile, b.MetadataDisks, err = below(table.Metadata)
	return err
}

// below returns the node of a block device, and the file or the devices that it lies on.
func below(number string) (path, file string, disks []string, err error) {
	if path, err = blockdev.Path(number); err != nil {
		return "", "", nil, err
	}
	if loop, err := blockdev.LoopInfo(path); err == nil {
		if info, err := os.Stat(loop.BackingFile); err == nil && loop.SameFile(info) {
			file = loop.BackingFile
		}
	}
	slaves, err := os.ReadDir(filepath.Join("/sys/dev/block", number, "slaves"))
	if errors.Is(err, os.ErrNotExist) {
		return path, file, nil, nil
	}
	for _, s := range slaves {
		disks = append(disks, filepath.Join("/dev", strings.ReplaceAll(s.Name(), "!", "/")))
	}
	return path, file, disks, err
}

// numberNow returns the number of the pool's device: whoever made the pool may have taken
// it out of the kernel and back, and the number may be another pool's by then.
func (p *Pool) numberNow() (string, error) {
	if !p.existing {
		return p.number, nil
	}
	dev, err := p.control.Info(p.device)
	if errors.Is(err, devmapper.ErrNotFound) {
		err = fmt.Errorf("%w: %w", err, ErrNotActive)
	}
	return dev.Number(), err
}

// metadataPath returns the node of the pool's metadata, which can have changed likewise.
func (p *Pool) metadataPath() (string, error) {
	if !p.existing {
		return p.backing.MetadataPath, nil
	}
	table, err := p.table()
	if err != nil {
		return "", err
	}
	return blockdev.Path(table.Metadata)
}

// extendExisting is Extend for an existing pool, of which nothing is changed.
func (p *Pool) extendExisting(ctx context.Context, dataBytes, metadataBytes uint64) error {
	status, err := p.Status(ctx)
	if err != nil || dataBytes <= status.Data.Total && metadataBytes <= status.Metadata.Total {
		return err
	}
	return p.notOurs()
}

// notOurs is the error for what would make an existing pool larger.
func (p *Pool) notOurs() error {
	remedy := "whoever made it has to"
	if strings.HasPrefix(p.uuid, lvmPrefix) {
		remedy = "use lvextend, or have LVM's dmeventd do it (thin_pool_autoextend_threshold in lvm.conf)"
		if volume, ok := lvmVolume(p.Name()); ok {
			remedy = strings.Replace(remedy, "lvextend", "lvextend on "+volume, 1)
		}
	}
	return fmt.Errorf("extend pool %s: %w: %s", p.Name(), ErrNotOurs, remedy)
}
