package check

import (
	"context"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/metadata"
)

// trashAge is the age at which a volume in the trash becomes a finding.
const trashAge = 10 * time.Minute

// Contents lists the pool's volumes and their mappings. *thinmeta.Metadata implements it.
type Contents interface {
	Superblock() thinmeta.Superblock
	Devices(ctx context.Context) iter.Seq2[thinmeta.Device, error]
	Mappings(ctx context.Context, id uint32) iter.Seq2[thinmeta.Mapping, error]
	MappedBlocks(ctx context.Context) (uint64, error)
}

// Input is the input of Compare.
type Input struct {
	Records Records
	// TransactionAfter is the store's transaction id after Contents was opened. A running
	// daemon raises it, so it may exceed that of Records. 0 means the one in Records.
	TransactionAfter uint64
	// Contents is nil if the pool's metadata could not be read; Findings then say why.
	Contents Contents
	// Status is the pool's status in the kernel, or nil if the pool is not loaded.
	Status *pool.Status
	// DataUsed is the number of data blocks that the pool counts as used at the time of Contents.
	// It is nil if writes to the pool made it unknown.
	DataUsed *uint64
	// Devices are the mapped devices of the pool's volumes.
	Devices []pool.MappedDevice
	// Mounts are the names in the daemon's mount directory.
	Mounts []string
	// Loops are the loop devices on the pool's files, except those that the pool uses.
	Loops []blockdev.LoopState
	// Running is true if a daemon is running. Unrecorded are its volumes without a record: spares
	// and frozen copies.
	Running    bool
	Unrecorded map[thin.ID]bool
	// Findings and Pending are the results of reading the input.
	Findings, Pending []Finding
	Now               time.Time
}

// Compare compares all parts of the input. It fails only if the context ends.
func Compare(ctx context.Context, in Input) (Report, error) {
	c := &comparison{Input: in, volumes: in.Records.volumes(), devices: make(map[uint32]pool.MappedDevice)}
	c.report.Findings = append(c.report.Findings, in.Findings...)
	c.report.Pending = append(c.report.Pending, in.Pending...)
	c.report.Examined.Snapshots, c.report.Examined.Devices = len(in.Records.Snapshots), len(in.Devices)
	for _, d := range in.Devices {
		c.devices[uint32(d.Volume)] = d
	}
	for _, p := range in.Records.Problems {
		f := Finding{Kind: KindStore, Subject: p.Subject, Text: p.Text}
		if p.Derived && !in.Running {
			f.Repair = "rebuild it from the records"
		}
		c.find(f)
	}
	c.compareStatus()
	c.compareSpace()
	if err := c.compareContents(ctx); err != nil {
		return Report{}, err
	}
	for _, d := range in.Devices {
		c.compareDevice(d)
	}
	c.compareTrash()
	c.compareMounts()
	for _, l := range in.Loops {
		c.find(Finding{
			Kind: KindLoop, Subject: "loop device " + l.Path, Path: l.Path, Loop: l,
			Text:   fmt.Sprintf("uses the pool's file %s, but is not one of the pool's loop devices", l.BackingFile),
			Repair: "detach it",
		})
	}
	return c.report.sorted(), ctx.Err()
}

type comparison struct {
	Input
	volumes map[uint32]*volume
	devices map[uint32]pool.MappedDevice
	report  Report
	// unread is true if a part of the metadata could not be read, which is already a finding.
	unread bool
	// timesReset is true if the pool's times were reset: a snapshot was created at time 0.
	timesReset bool
}

func (c *comparison) find(f Finding)  { c.report.Findings = append(c.report.Findings, f) }
func (c *comparison) await(f Finding) { c.report.Pending = append(c.report.Pending, f) }

// subject names a volume by its owner.
func (c *comparison) subject(id uint32) string {
	if v := c.volumes[id]; v != nil {
		return v.subject
	}
	return "volume " + strconv.FormatUint(uint64(id), 10)
}

func (c *comparison) compareStatus() {
	if c.Status == nil {
		return
	}
	text := ""
	switch {
	case c.Status.NeedsCheck:
		text = "marked needs_check by the kernel: stop all users of the pool and the daemon, and run `thinsnap pool repair`"
	case c.Status.Mode == thin.ModeReadOnly:
		text = "read-only: its metadata device is full or has failed"
	case c.Status.Mode == thin.ModeOutOfDataSpace:
		text = "no space left for data: remove snapshots, or extend the pool"
	case c.Status.Mode != thin.ModeReadWrite:
		text = "failed: see dmesg, and check the devices below the pool"
	}
	if text != "" {
		c.find(Finding{Kind: KindPool, Subject: "pool", Text: text})
	}
}

// compareSpace reports a pool that promises more space than its disk has.
func (c *comparison) compareSpace() {
	if c.Status == nil || c.Status.Overpromised() == 0 {
		return
	}
	c.find(Finding{Kind: KindSpace, Subject: "pool", Text: fmt.Sprintf(
		"promises %d bytes more than are on the disk below its files and free there, so writes of containers fail when the "+
			"disk is full: make room on the disk; `thinsnap info` says why it is not allocated", c.Status.Overpromised())})
}

// compareTrash reports volumes that stay in the trash. The usual cause is an open device.
func (c *comparison) compareTrash() {
	for _, t := range c.Records.Trash {
		f := Finding{Kind: KindTrash, Subject: c.subject(t.VolumeID), DeviceID: t.VolumeID,
			Text: "its volume waits for deletion"}
		open := c.devices[t.VolumeID].OpenCount
		if open > 0 {
			f.Text += fmt.Sprintf(", but its device is in use (open count %d)", open)
		}
		if c.Running && c.Now.Sub(t.Since) > trashAge {
			f.Text += ", since " + t.Since.UTC().Format(time.DateTime)
			c.find(f)
			continue
		}
		c.await(f)
	}
}

// compareMounts reports mounts that outlived their snapshots.
func (c *comparison) compareMounts() {
	for _, name := range c.Mounts {
		id, err := strconv.ParseUint(name, 10, 32)
		if v := c.volumes[uint32(id)]; err == nil && v != nil && v.writable {
			continue
		}
		f := Finding{
			Kind: KindMount, Subject: "mount " + name, Path: name,
			Text: "its volume belongs to no active snapshot",
		}
		if err == nil && id <= metadata.MaxDevice {
			f.DeviceID, f.Repair = uint32(id), "unmount it"
		}
		c.find(f)
	}
}
