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

// trashAge is how long the volume of a removed snapshot may still be there before that is worth a word.
const trashAge = 10 * time.Minute

// Contents is the pool's own list of what is in it; *thinmeta.Metadata is one.
type Contents interface {
	Superblock() thinmeta.Superblock
	Devices(ctx context.Context) iter.Seq2[thinmeta.Device, error]
	Mappings(ctx context.Context, id uint32) iter.Seq2[thinmeta.Mapping, error]
}

// Input is what is held against each other.
type Input struct {
	Records Records
	// Contents is nil if it could not be read; Findings say why.
	Contents Contents
	// Status is the pool's in the kernel, nil if it is not there.
	Status *pool.Status
	// Devices are the mapped devices of the pool's volumes.
	Devices []pool.MappedDevice
	// Mounts are the names in the directory of the daemon's own mounts.
	Mounts []string
	// Loops are the loop devices on the pool's files that are not the pool's.
	Loops []blockdev.LoopState
	// Running says that a daemon is at work, and Spares are the volumes that it has made ahead.
	Running bool
	Spares  map[thin.ID]bool
	// Findings and Pending are those of the reading itself.
	Findings, Pending []Finding
	Now               time.Time
}

// Compare holds everything in the input against everything else. The error is the context's.
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
			f.Repair = "make it anew from the records"
		}
		c.find(f)
	}
	c.compareStatus()
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
			Text: fmt.Sprintf("stands on %s, which is the pool's", l.BackingFile), Repair: "detach it",
		})
	}
	return c.report.sorted(), ctx.Err()
}

type comparison struct {
	Input
	volumes map[uint32]*volume
	devices map[uint32]pool.MappedDevice
	report  Report
}

func (c *comparison) find(f Finding)  { c.report.Findings = append(c.report.Findings, f) }
func (c *comparison) await(f Finding) { c.report.Pending = append(c.report.Pending, f) }

// subject names a volume by what owns it.
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
		text = "the kernel asks for a check of the pool's metadata: stop the daemon and what uses the pool, and run `thinsnap pool repair`"
	case c.Status.Mode == thin.ModeReadOnly:
		text = "is read-only: its metadata device is full or has failed"
	case c.Status.Mode == thin.ModeOutOfDataSpace:
		text = "has no space left for data: remove snapshots, or make the pool larger"
	case c.Status.Mode != thin.ModeReadWrite:
		text = "has failed: look at the kernel's log, and at the devices below the pool"
	}
	if text != "" {
		c.find(Finding{Kind: KindPool, Subject: "pool", Text: text})
	}
}

// compareTrash reports volumes that stay in the trash, which they do while somebody has them open.
func (c *comparison) compareTrash() {
	for _, t := range c.Records.Trash {
		f := Finding{Kind: KindTrash, Subject: c.subject(t.Device), Device: t.Device, Text: "its volume waits to be deleted"}
		open := c.devices[t.Device].OpenCount
		if open > 0 {
			f.Text += fmt.Sprintf(", but is in use (open count %d)", open)
		}
		if c.Running && c.Now.Sub(t.Since) > trashAge {
			f.Text += " since " + t.Since.UTC().Format(time.DateTime)
			c.find(f)
			continue
		}
		c.await(f)
	}
}

// compareMounts looks for mounts that have outlived the snapshot for which they were made.
func (c *comparison) compareMounts() {
	for _, name := range c.Mounts {
		id, err := strconv.ParseUint(name, 10, 32)
		if v := c.volumes[uint32(id)]; err == nil && v != nil && v.writable {
			continue
		}
		f := Finding{
			Kind: KindMount, Subject: "mount " + name, Path: name,
			Text: "is of a volume that belongs to no active snapshot",
		}
		if err == nil && id <= metadata.MaxDevice {
			f.Device, f.Repair = uint32(id), "give it up"
		}
		c.find(f)
	}
}
