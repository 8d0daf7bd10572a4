package pool

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

const (
	// lvmPrefix and lvmLayer begin and end the UUID that LVM gives to the device with the thin-pool
	// target. When LVM creates its first volume in the pool, it adds lvmLayer to the name of that
	// device, and creates another device with the old name on top of it.
	lvmPrefix, lvmLayer = "LVM-", "-tpool"
	mapperDir           = "/dev/mapper/"
)

// ErrNotOurs is returned for a change that thinsnap does not make to a foreign pool.
var ErrNotOurs = errors.New("not allowed on a foreign pool")

// ExistingSpec describes a foreign pool. Thinsnap changes nothing in the pool but its own volumes,
// except by ZeroNewBlocks.
type ExistingSpec struct {
	// ID is part of the UUID of each volume's device.
	ID string
	// Name is the prefix of the names of the volumes' devices.
	Name string
	// Device names the pool; see DeviceName.
	Device string
	// UUID is the UUID of the pool's mapped device, "" if it has none. BlockBytes is the pool's
	// block size. Both are empty until the pool is first opened.
	UUID       string
	BlockBytes uint64
}

// DeviceName returns the name of a mapped device that is given by its name, by its path below
// /dev/mapper, or, for LVM, as VG/LV or /dev/VG/LV.
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

// SameName reports whether two names of mapped devices belong to one pool: LVM can have two devices
// for a pool.
func SameName(a, b string) bool {
	return strings.TrimSuffix(a, lvmLayer) == strings.TrimSuffix(b, lvmLayer)
}

// lvmVolume returns VG/LV for the name of an LVM mapped device.
func lvmVolume(name string) (string, bool) {
	const hyphen = "\x00"
	parts := strings.Split(strings.ReplaceAll(strings.TrimSuffix(name, lvmLayer), "--", hyphen), "-")
	if len(parts) != 2 || parts[0] == "" || parts[1] == "" {
		return "", false
	}
	return strings.ReplaceAll(parts[0]+"/"+parts[1], hyphen, "-"), true
}

// vgLV returns VG/LV of the pool, if the pool is known to be LVM's.
func (s ExistingSpec) vgLV() (string, bool) {
	namedByLVM := s.BlockBytes == 0 && strings.Contains(s.Device, "/") && !strings.HasPrefix(s.Device, mapperDir)
	if !namedByLVM && !strings.HasPrefix(s.UUID, lvmPrefix) {
		return "", false
	}
	return lvmVolume(DeviceName(s.Device))
}

// Open attaches to a foreign pool. It has LVM activate an inactive LVM pool, and returns
// ErrNotActive for any other inactive pool. It returns the spec with the pool's UUID and block
// size, or ErrWrongPool if the spec had others.
func (s ExistingSpec) Open(ctx context.Context, control *devmapper.Control) (*Pool, ExistingSpec, error) {
	if err := ctx.Err(); err != nil {
		return nil, s, err
	}
	p, found, err := s.OpenLoaded(control)
	if errors.Is(err, devmapper.ErrNotFound) {
		if err := s.activate(ctx, err); err != nil {
			return nil, s, err
		}
		p, found, err = s.OpenLoaded(control)
	}
	if err == nil && s.BlockBytes == 0 {
		err = p.checkTags(ctx)
	}
	return p, found, err
}

// activate has LVM activate the pool. notFound is the error of the search in the kernel.
func (s ExistingSpec) activate(ctx context.Context, notFound error) error {
	volume, isLVM := s.vgLV()
	if !isLVM {
		return fmt.Errorf("%w: %w: its owner must activate it; if it is LVM's, run `vgchange -ay VG`", notFound, ErrNotActive)
	}
	devices, err := s.lvmDevices(ctx)
	if err == nil {
		err = Step{Args: []string{"lvchange", "--yes", "--activate", "y", volume}, devices: devices}.do(ctx)
	}
	if err != nil {
		return fmt.Errorf("%w: %w: `lvchange -ay %s` failed: %w", notFound, ErrNotActive, volume, err)
	}
	return nil
}

// lvmDevices returns the disks of the pool's volume group, or all disks of the host if the group is
// not known.
func (s ExistingSpec) lvmDevices(ctx context.Context) (lvmDevices, error) {
	group, isLVM := groupOf(s.UUID)
	if !isLVM {
		return hostDevices()
	}
	g, err := findGroup(ctx, func(d pvReport) bool { return strings.ReplaceAll(d.VGUUID, "-", "") == group })
	return g.devices, err
}

// groupOf returns the UUID of the volume group, without hyphens, from the UUID of an LVM mapped
// device.
func groupOf(uuid string) (group string, isLVM bool) {
	const bytes = 32
	uuid, isLVM = strings.CutPrefix(uuid, lvmPrefix)
	if !isLVM || len(uuid) < bytes {
		return "", false
	}
	return uuid[:bytes], true
}

// checkTags refuses a pool that LVM created for another root of thinsnap. If LVM's tags cannot be
// read, it only warns.
func (p *Pool) checkTags(ctx context.Context) error {
	volume, ok := lvmVolume(p.Name())
	if !ok || !strings.HasPrefix(p.uuid, lvmPrefix) {
		return nil
	}
	devices, err := ExistingSpec{UUID: p.uuid}.lvmDevices(ctx)
	var r reports
	if err == nil {
		r, err = report(ctx, devices, "lvs", "--reportformat", "json", "--options", "lv_tags,vg_tags", volume)
	}
	if err != nil {
		log.G(ctx).WithError(err).WithField("pool", volume).Warn("cannot read LVM's tags of the pool: it may belong " +
			"to another root")
		return nil
	}
	for _, v := range r.Report[0].LV {
		if strings.Contains(v.Tags+","+v.VGTags, uuidStart) {
			return fmt.Errorf("pool %s was made by thinsnap for another root (LVM's tags are %q): %w", volume,
				v.Tags+","+v.VGTags, ErrWrongPool)
		}
	}
	return nil
}

// OpenLoaded is Open for an active pool. It returns devmapper.ErrNotFound if the pool is not
// active.
func (s ExistingSpec) OpenLoaded(control *devmapper.Control) (*Pool, ExistingSpec, error) {
	p, found, err := s.open(control)
	if err != nil {
		return nil, s, fmt.Errorf("pool %s: %w", s.Device, err)
	}
	return p, found, nil
}

func (s ExistingSpec) open(control *devmapper.Control) (*Pool, ExistingSpec, error) {
	dev, err := s.Find(control)
	if err != nil {
		return nil, s, err
	}
	if dev.Suspended {
		return nil, s, fmt.Errorf("device %s is suspended: have the program that suspended it resume it; "+
			"if that has ended, run `dmsetup resume %s`: %w", dev.Name, dev.Name, ErrNotActive)
	}
	p, err := newPool(control, dev, s.ID, s.Name, s.BlockBytes, existingBackend{})
	if err != nil {
		return nil, s, err
	}
	backing, err := p.Backing()
	if err != nil {
		return nil, s, err
	}
	p.data.path, p.metadata.path = backing.DataFile, backing.MetadataFile
	s.UUID, s.BlockBytes = p.uuid, p.blockBytes
	return p, s, nil
}

// Find returns the mapped device of an active pool, or devmapper.ErrNotFound. It returns
// ErrWrongPool if the device is not the one of the first opening, or if thinsnap created it.
func (s ExistingSpec) Find(control *devmapper.Control) (devmapper.Device, error) {
	dev, err := s.find(control)
	if err == nil && strings.HasPrefix(dev.UUID, uuidStart) {
		err = fmt.Errorf("device %s is a pool that thinsnap made for another root: %w", dev.Name, ErrWrongPool)
	}
	return dev, err
}

func (s ExistingSpec) find(control *devmapper.Control) (devmapper.Device, error) {
	name := DeviceName(s.Device)
	if s.UUID == "" {
		dev, err := findPool(control, name)
		if err == nil && s.BlockBytes != 0 && dev.UUID != "" {
			err = fmt.Errorf("device %s has UUID %q, but had none before: %w", dev.Name, dev.UUID, ErrWrongPool)
		}
		return dev, err
	}
	dev, err := control.InfoByUUID(s.UUID)
	if errors.Is(err, devmapper.ErrNotFound) {
		if other, findErr := findPool(control, name); findErr == nil || errors.Is(findErr, ErrWrongPool) {
			return dev, fmt.Errorf("device %s has UUID %q, not %q: %w", name, other.UUID, s.UUID, ErrWrongPool)
		}
		return dev, err
	}
	if err != nil {
		return dev, err
	}
	if !SameName(dev.Name, name) {
		return dev, fmt.Errorf("the device with its UUID %q has the name %s, not %s: %w", s.UUID, dev.Name, name,
			ErrWrongPool)
	}
	if !dev.Live {
		return dev, fmt.Errorf("device %s has no table: %w", dev.Name, devmapper.ErrNotFound)
	}
	return dev, nil
}

// findPool returns the device with the thin-pool target that has the given name, or that LVM has
// below a device of that name.
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
		return dev, fmt.Errorf("device %s is not a thin pool: %w", name, ErrWrongPool)
	}
	return dev, nil
}

// existingBackend is the backend of a foreign pool. It never changes the pool.
type existingBackend struct{}

func (existingBackend) deactivate(context.Context, *Pool) error { return nil }

func (existingBackend) setTransactionID(p *Pool, _, _ uint64) error {
	return fmt.Errorf("set the transaction id of pool %s: %w", p.name, ErrNotOurs)
}

// extend fails unless the pool is already large enough.
func (existingBackend) extend(ctx context.Context, p *Pool, dataBytes, metadataBytes uint64) error {
	status, err := p.Status(ctx)
	if err != nil || dataBytes <= status.Data.Total && metadataBytes <= status.Metadata.Total {
		return err
	}
	return cannotExtend(p)
}

func (existingBackend) largest(_ context.Context, p *Pool) (data, metadata uint64, err error) {
	return 0, 0, cannotExtend(p)
}

func cannotExtend(p *Pool) error {
	name := p.Name()
	remedy := "its owner must extend it"
	if strings.HasPrefix(p.uuid, lvmPrefix) {
		remedy = "use lvextend, or have LVM's dmeventd do it (thin_pool_autoextend_threshold in lvm.conf)"
		if volume, ok := lvmVolume(name); ok {
			remedy = strings.Replace(remedy, "lvextend", "lvextend on "+volume, 1)
		}
	}
	return fmt.Errorf("extend pool %s: %w: %s", name, ErrNotOurs, remedy)
}

func (existingBackend) keepAllocated(context.Context, *Pool) (watch bool, err error) {
	return false, nil
}
