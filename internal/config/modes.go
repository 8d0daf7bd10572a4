package config

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/thinsnap/thinsnap/metadata"
)

// The pool modes.
const (
	// ModeLoop keeps the pool in two files below the root directory, attached as loop
	// devices.
	ModeLoop = metadata.ModeLoop
	// ModeDirectLVM has LVM create the pool on a whole disk.
	ModeDirectLVM = metadata.ModeDirectLVM
	// ModeExisting uses a foreign pool.
	ModeExisting = metadata.ModeExisting
)

// mode is one value of pool.mode, with its table of the file.
type mode struct {
	name string
	// named reports whether the table names a device, which implies the mode.
	named func(p *Pool) bool
	// check validates the table. It is called in every mode.
	check func(c *checker, p *Pool)
}

// modes lists the modes. The first is the default.
func modes() []mode {
	return []mode{
		{ModeLoop, func(*Pool) bool { return false }, (*checker).loop},
		{ModeDirectLVM, func(p *Pool) bool { return p.DirectLVM.Device != "" }, (*checker).directLVM},
		{ModeExisting, func(p *Pool) bool { return p.Existing.Device != "" }, (*checker).existing},
	}
}

// Modes returns the values that pool.mode can have. The first is the default.
func Modes() []string {
	var names []string
	for _, m := range modes() {
		names = append(names, m.name)
	}
	return names
}

// chooseMode sets a missing mode: the mode whose table names a device, or else the default.
func (p *Pool) chooseMode() {
	for _, m := range modes() {
		if p.Mode == "" && m.named(p) {
			p.Mode = m.name
		}
	}
	if p.Mode == "" {
		p.Mode = modes()[0].name
	}
}

func (c *checker) loop(p *Pool) {
	l := &p.Loop
	c.require(l.DataSize >= minDataSize, "pool.loop.data_size", l.DataSize)
	c.require(within(l.MetadataSize, minMetadataSize, maxMetadataSize) && l.MetadataSize%diskBlock == 0,
		"pool.loop.metadata_size", l.MetadataSize)
}

func (c *checker) directLVM(p *Pool) {
	d := &p.DirectLVM
	c.require(d.Device == "" || filepath.IsAbs(d.Device), "pool.direct_lvm.device", d.Device)
	c.require(d.ThinpPercent >= 1 && d.ThinpPercent <= 98, "pool.direct_lvm.thinp_percent", d.ThinpPercent)
	c.require(d.ThinpMetapercent >= 1 && d.ThinpMetapercent <= 49 && 2*d.ThinpMetapercent <= 100-min(d.ThinpPercent, 98),
		"pool.direct_lvm.thinp_metapercent", d.ThinpMetapercent)
	switch {
	case p.Mode == ModeDirectLVM && d.Device == "":
		c.add("pool.direct_lvm.device", d.Device, "must name a disk in mode \"direct-lvm\"")
	case p.Mode != ModeDirectLVM && d.Device != "":
		c.add("pool.mode", p.Mode, "but pool.direct_lvm.device is set: remove one of them, or set the mode to \"direct-lvm\"")
	case p.Mode == ModeDirectLVM && len(p.Name)+strings.Count(p.Name, "-") > maxGroupName:
		c.add("pool.name", p.Name, fmt.Sprintf("must have at most %d characters in mode \"direct-lvm\", where each "+
			"hyphen counts twice", maxGroupName))
	}
}

func (c *checker) existing(p *Pool) {
	device := p.Existing.Device
	c.require(device == "" || isPoolDevice(device), "pool.existing.device", device)
	switch {
	case p.Mode == ModeExisting && device == "":
		c.add("pool.existing.device", device, "must name a thin pool in mode \"existing\"")
	case p.Mode != ModeExisting && device != "":
		c.add("pool.mode", p.Mode, "but pool.existing.device is set: remove one of them, or set the mode to \"existing\"")
	}
}

// isPoolDevice reports whether a name has a form that is stable across reboots: a mapped device or
// VG/LV, but not a node such as /dev/dm-3.
func isPoolDevice(device string) bool {
	return len(device) <= maxPoolDevice &&
		regexp.MustCompile(`^(/dev/mapper/[^/\s]+|(/dev/)?[A-Za-z0-9_.+][^/\s]*/[A-Za-z0-9_.+][^/\s]*|[^/\s]+)$`).MatchString(device)
}
