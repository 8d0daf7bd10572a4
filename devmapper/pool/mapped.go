package pool

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// MappedDevice is a mapped device, in any state, that has the UUID or the name of a volume, or
// whose table maps one ([Inspection.MappedDevices]).
type MappedDevice struct {
	devmapper.Device
	// Volume is the volume id in the device's UUID, or else in its name.
	Volume thin.ID
	// Path is the path of its node.
	Path string
	// Ours is true if the UUID is of this pool. A device that has only the name is foreign.
	Ours bool
	// Bytes is the size of the live table; 0 without one.
	Bytes uint64
	// Shows is the volume that the live table maps, and Below the device number of its pool. OnPool
	// is true if that is this pool.
	Shows  thin.ID
	Below  string
	OnPool bool
}

// MappedDevices returns the mapped devices with the UUID or the name of a volume of this pool, in no
// particular order.
func (p *Pool) MappedDevices(ctx context.Context) ([]MappedDevice, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	devices, err := p.control.List()
	if err != nil {
		return nil, err
	}
	number, err := p.number()
	if err != nil {
		return nil, err
	}
	var all []MappedDevice
	for _, dev := range devices {
		id, ours := p.marked(dev)
		if id == 0 {
			continue
		}
		d, err := p.mappedDevice(dev.Name, number, id, ours)
		if errors.Is(err, devmapper.ErrNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

// marked returns the volume id in a device's UUID or name, or 0.
func (p *Pool) marked(dev devmapper.Device) (id thin.ID, ours bool) {
	if number, ok := strings.CutPrefix(dev.UUID, uuidPrefix(p.id)); ok {
		id, err := strconv.ParseUint(number, 10, 24)
		return thin.ID(id), err == nil
	}
	if number, ok := strings.CutPrefix(dev.Name, p.name+"-snap-"); ok {
		if id, err := strconv.ParseUint(number, 10, 24); err == nil {
			return thin.ID(id), false
		}
	}
	return 0, false
}

func (p *Pool) mappedDevice(name, pool string, id thin.ID, ours bool) (MappedDevice, error) {
	dev, targets, err := p.control.Table(name)
	if err != nil {
		return MappedDevice{}, err
	}
	d := MappedDevice{Device: dev, Volume: id, Path: devmapper.NodePath(name), Ours: ours}
	for _, t := range targets {
		d.Bytes += t.Length * devmapper.SectorBytes
	}
	if len(targets) != 1 || targets[0].Type != thin.Type {
		return d, nil
	}
	if d.Below, d.Shows, err = thin.ParseTarget(targets[0].Params); err != nil {
		return d, fmt.Errorf("device %s: %w", name, err)
	}
	d.OnPool = d.Below == pool
	return d, nil
}
