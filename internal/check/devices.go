package check

import (
	"fmt"

	"github.com/thinsnap/thinsnap/devmapper/pool"
)

// compareDevice compares one mapped device with the store.
func (c *comparison) compareDevice(d pool.MappedDevice) {
	id := uint32(d.Volume)
	v := c.volumes[id]
	f := Finding{Kind: KindDevice, Subject: c.subject(id), DeviceID: id, Path: d.Path}
	switch {
	case !d.Ours:
		f.Text = fmt.Sprintf("mapped device %s has its name, but UUID %q: it is a foreign device", d.Name, d.UUID)
		c.find(f)
	case !d.Live:
		f.Text = "its mapped device was left without a table by an interrupted activation"
		f.Repair = "remove it"
		c.await(f)
	case !d.OnPool || d.Shows != d.Volume:
		f.Text = fmt.Sprintf("its mapped device %s shows volume %d of device %s: remove it before anything is written to it",
			d.Path, d.Shows, d.Below)
		c.find(f)
	case d.Suspended:
		f.Text, f.Repair = "its mapped device is suspended, and its users wait", "resume it"
		if c.Running {
			c.find(f)
		} else {
			c.await(f)
		}
	case v == nil:
		c.deviceUnowned(f, d)
	case d.Bytes != v.bytes:
		f.Kind = KindSize
		f.Text = fmt.Sprintf("its mapped device %s has %d bytes instead of %d", d.Path, d.Bytes, v.bytes)
		c.find(f)
	case !v.writable && !d.ReadOnly && d.OpenCount > 0:
		f.Text = fmt.Sprintf("committed, but its mapped device %s is open for writing (open count %d)", d.Path, d.OpenCount)
		c.find(f)
	case !v.writable && !d.ReadOnly, !v.writable && !v.views:
		f.Text, f.Repair = "its mapped device is not needed", "deactivate it"
		c.await(f)
	}
}

func (c *comparison) deviceUnowned(f Finding, d pool.MappedDevice) {
	switch {
	case c.Unrecorded[d.Volume]:
	case c.Records.leased(uint32(d.Volume)):
		f.Text = "its mapped device belongs to an unfinished or a removed snapshot"
		c.await(f)
	default:
		f.Text = "it has a mapped device, but no record owns the volume"
		if d.OpenCount == 0 {
			f.Repair = "deactivate it"
		}
		c.find(f)
	}
}
