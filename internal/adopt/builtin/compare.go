package builtin

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// A comparer finds contradictions.
type comparer struct {
	dbs      *Databases
	links    map[link]string
	byKey    map[string]*Snapshot
	byDevice map[string]*Snapshot // by device name
	byID     map[uint32]*Device
}

// compare sets the Problems of dbs. links are the entries of v1/parents.
func compare(dbs *Databases, links map[link]string) {
	c := &comparer{
		dbs: dbs, links: links,
		byKey:    make(map[string]*Snapshot, len(dbs.Snapshots)),
		byDevice: make(map[string]*Snapshot, len(dbs.Snapshots)),
		byID:     make(map[uint32]*Device, len(dbs.Devices)),
	}
	for i := range dbs.Snapshots {
		s := &dbs.Snapshots[i]
		c.byKey[s.Key] = s
	}
	c.snapshots()
	c.ancestry()
	c.parents()
	c.devices()
	c.ids()
	slices.SortStableFunc(dbs.Problems, func(a, b Problem) int { return strings.Compare(a.Subject, b.Subject) })
}

func (c *comparer) report(subject, key, format string, args ...any) {
	c.dbs.Problems = append(c.dbs.Problems, Problem{Subject: subject, Key: key, Text: fmt.Sprintf(format, args...)})
}

func (c *comparer) reportSnapshot(s *Snapshot, format string, args ...any) {
	c.report(fmt.Sprintf("snapshot %q", s.Key), s.Key, format, args...)
}

func (c *comparer) reportDevice(d *Device, format string, args ...any) {
	key := ""
	if s := c.byDevice[d.Name]; s != nil {
		key = s.Key
	}
	c.report(fmt.Sprintf("device %q", d.Name), key, format, args...)
}

// snapshots compares each snapshot with its device, and with its parent.
func (c *comparer) snapshots() {
	for i := range c.dbs.Snapshots {
		s := &c.dbs.Snapshots[i]
		name := deviceName(c.dbs.Pool, s.ID)
		if other := c.byDevice[name]; other != nil {
			c.reportSnapshot(other, "has the id %d, like snapshot %q", s.ID, s.Key)
			c.reportSnapshot(s, "has the id %d, like snapshot %q", s.ID, other.Key)
		} else {
			c.byDevice[name] = s
		}
		if s.ID > c.dbs.LastID {
			c.reportSnapshot(s, "has the id %d, which containerd would hand out again: the last one is %d", s.ID, c.dbs.LastID)
		}
		d, found := c.dbs.Device(*s)
		switch {
		case !found:
			c.reportSnapshot(s, "has no device: %q does not exist", name)
		case d.State == StateRemoved:
			c.reportSnapshot(s, "has the device %q, which is Removed: containerd would delete its volume, or has deleted it",
				name)
		}
		c.parent(s, d, found)
	}
}

// parent compares a snapshot with its parent, and the devices of the two.
func (c *comparer) parent(s *Snapshot, d Device, found bool) {
	parent, want := c.byKey[s.Parent], ""
	switch {
	case s.Parent == "":
	case parent == nil:
		c.reportSnapshot(s, "has the parent %q, which does not exist", s.Parent)
		return
	default:
		want = deviceName(c.dbs.Pool, parent.ID)
		if parent.Kind != snapshots.KindCommitted {
			c.reportSnapshot(s, "has the parent %q, which is not committed", s.Parent)
		}
	}
	switch {
	case !found, d.Parent == want:
	case want == "":
		c.reportSnapshot(s, "has no parent, but its device %q is a copy of %q", d.Name, d.Parent)
	case d.Parent == "":
		c.reportSnapshot(s, "has the parent %q, but its device %q is not a copy", s.Parent, d.Name)
	default:
		c.reportSnapshot(s, "has the parent %q with the device %q, but its device %q is a copy of %q",
			s.Parent, want, d.Name, d.Parent)
	}
}

// ancestry reports snapshots that are their own ancestors, and their descendants.
func (c *comparer) ancestry() {
	// ends has the visited snapshots by key, with false if their ancestors form a cycle.
	ends := make(map[string]bool, len(c.dbs.Snapshots))
	for i := range c.dbs.Snapshots {
		var path []*Snapshot
		onPath := make(map[string]bool)
		end := true
		for s := &c.dbs.Snapshots[i]; s != nil; s = c.byKey[s.Parent] {
			known, seen := ends[s.Key]
			if seen {
				end = known
				break
			}
			if onPath[s.Key] {
				end = false
				break
			}
			onPath[s.Key] = true
			path = append(path, s)
		}
		for _, s := range path {
			if ends[s.Key] = end; !end {
				c.reportSnapshot(s, "is its own ancestor, or has an ancestor that is")
			}
		}
	}
}

// parents compares v1/parents with the snapshots.
func (c *comparer) parents() {
	used := make(map[link]bool, len(c.links))
	for i := range c.dbs.Snapshots {
		s := &c.dbs.Snapshots[i]
		parent := c.byKey[s.Parent]
		if parent == nil {
			continue
		}
		l := link{parent.ID, s.ID}
		used[l] = true
		switch key, found := c.links[l]; {
		case !found:
			c.reportSnapshot(s, "is not in the index of the children of %q, so containerd could remove that parent", s.Parent)
		case key != s.Key:
			c.reportSnapshot(s, "is called %q in the index of the children of %q", key, s.Parent)
		}
	}
	for l, key := range c.links {
		if used[l] {
			continue
		}
		c.report(fmt.Sprintf("index entry %d/%d", l.parent, l.child), "",
			"gives snapshot %q the parent with the id %d, which is not its parent", key, l.parent)
	}
}

// devices compares each device with its id, and with its snapshot.
func (c *comparer) devices() {
	for i := range c.dbs.Devices {
		d := &c.dbs.Devices[i]
		if other := c.byID[d.ID]; other != nil {
			c.reportDevice(other, "has the device id %d, like device %q", d.ID, d.Name)
			c.reportDevice(d, "has the device id %d, like device %q", d.ID, other.Name)
		} else {
			c.byID[d.ID] = d
		}
		switch state, known := c.dbs.IDs[d.ID]; {
		case !known:
			c.reportDevice(d, "has the device id %d, which has no state: containerd would hand it out again", d.ID)
		case state == Free:
			c.reportDevice(d, "has the device id %d, which is free: containerd would hand it out again", d.ID)
		}
		number, ours := strings.CutPrefix(d.Name, c.dbs.Pool+"-snap-")
		id, err := strconv.ParseUint(number, 10, 64)
		switch {
		case !ours, err != nil, id == 0, deviceName(c.dbs.Pool, id) != d.Name:
			c.reportDevice(d, "has a name that no snapshot's device in the pool %q can have", c.dbs.Pool)
		case c.byDevice[d.Name] == nil && d.State != StateRemoved:
			c.reportDevice(d, "has no snapshot, and is %s", d.State)
		}
	}
}

// ids compares the states of device ids with the devices.
func (c *comparer) ids() {
	for _, id := range slices.Sorted(maps.Keys(c.dbs.IDs)) {
		state, subject := c.dbs.IDs[id], fmt.Sprintf("device id %d", id)
		if state != Free && c.byID[id] == nil {
			c.report(subject, "", "is %s, but no device has it: the pool may have its volume", state)
		}
		if uint64(id) > c.dbs.LastDevice {
			c.report(subject, "", "would be handed out again: the last one is %d", c.dbs.LastDevice)
		}
	}
}
