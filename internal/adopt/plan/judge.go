package plan

import (
	"fmt"
	"strings"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
)

// judge makes a plan from an input, without any access to the machine.
func judge(in input) Plan {
	p := Plan{Options: in.options, Obstacles: in.obstacles, Foreign: in.foreign, Names: in.names}
	j := &judgement{input: in, plan: &p}
	j.poolState()
	if in.unread {
		return p
	}
	j.link()
	j.judgeSnapshots()
	j.judgeNames()
	j.spreadFlaws()
	j.markNeeded()
	j.rows()
	j.adopt()
	j.obstruct()
	return p
}

// A judgement is an unfinished plan.
type judgement struct {
	input
	plan *Plan

	snapshots []*snapshot // sorted by key
	names     []*name     // sorted by namespace and name
	byKey     map[string]*snapshot
	byDevice  map[string]builtin.Device
	// taken has the volume ids of the adopted snapshots and of the kept volumes.
	taken map[uint32]bool
}

// A snapshot is a snapshot of the built-in.
type snapshot struct {
	builtin.Snapshot
	device    builtin.Device
	hasDevice bool
	volume    volume

	parent   *snapshot // nil if it has none or it does not exist
	children []*snapshot
	names    []*name
	flaw
	named  bool // containerd names it or a descendant
	needed bool // it is adopted
}

// size returns the size of the mapped device in bytes, a multiple of the sector size.
func (s *snapshot) size() uint64 { return sizeOf(s.device) }

func sizeOf(d builtin.Device) uint64 { return d.Bytes / devmapper.SectorBytes * devmapper.SectorBytes }

// A name is containerd's name of a snapshot.
type name struct {
	metadb.Snapshot
	namespace string
	snapshot  *snapshot // nil if the built-in does not have it
	parent    *name     // nil if it has none or it does not exist
	children  []*name
	flaw
}

// A flaw is the problem of a snapshot or of a name. problem is empty without one.
type flaw struct {
	problem, remedy string
}

func (f *flaw) flawed() bool { return f.problem != "" }

// find sets the flaw, unless one is set.
func (f *flaw) find(remedy, format string, args ...any) {
	if !f.flawed() {
		f.problem, f.remedy = fmt.Sprintf(format, args...), remedy
	}
}

// link connects the records of the three databases.
func (j *judgement) link() {
	j.byKey = make(map[string]*snapshot, len(j.databases.Snapshots))
	j.byDevice = make(map[string]builtin.Device, len(j.databases.Devices))
	j.taken = make(map[uint32]bool)
	for _, d := range j.databases.Devices {
		j.byDevice[d.Name] = d
	}
	for _, record := range j.databases.Snapshots {
		s := &snapshot{Snapshot: record}
		s.device, s.hasDevice = j.databases.Device(record)
		s.volume = j.volumes[s.device.Name]
		j.snapshots = append(j.snapshots, s)
		j.byKey[s.Key] = s
	}
	for _, s := range j.snapshots {
		if s.parent = j.byKey[s.Parent]; s.parent != nil {
			s.parent.children = append(s.parent.children, s)
		}
	}
	for _, ns := range j.input.names.Namespaces {
		byName := make(map[string]*name, len(ns.Snapshots))
		for _, record := range ns.Snapshots {
			n := &name{Snapshot: record, namespace: ns.Name, snapshot: j.byKey[record.Backend]}
			if n.snapshot != nil {
				n.snapshot.names = append(n.snapshot.names, n)
			}
			byName[n.Key] = n
			j.names = append(j.names, n)
		}
		for _, n := range j.names[len(j.names)-len(ns.Snapshots):] {
			if n.parent = byName[n.Parent]; n.parent != nil {
				n.parent.children = append(n.parent.children, n)
			}
		}
	}
}

// spreadFlaws marks all descendants of flawed snapshots and names as flawed, in both databases.
func (j *judgement) spreadFlaws() {
	var snapshots []*snapshot
	var names []*name
	for _, s := range j.snapshots {
		if s.flawed() {
			snapshots = append(snapshots, s)
		}
	}
	for _, n := range j.names {
		if n.flawed() {
			names = append(names, n)
		}
	}
	for len(snapshots)+len(names) > 0 {
		if n := len(snapshots); n > 0 {
			s := snapshots[n-1]
			snapshots = snapshots[:n-1]
			for _, child := range s.children {
				if !child.flawed() {
					child.find(remedyDescends, descends+"%q, which %s", s.Key, s.because())
					snapshots = append(snapshots, child)
				}
			}
			for _, n := range s.names {
				if !n.flawed() {
					n.flaw = s.flaw
					names = append(names, n)
				}
			}
			continue
		}
		n := names[len(names)-1]
		names = names[:len(names)-1]
		for _, child := range n.children {
			if !child.flawed() {
				child.find(remedyDescends, descends+"%q, which %s", n.Key, n.because())
				names = append(names, child)
			}
		}
		if s := n.snapshot; s != nil && !s.flawed() {
			s.flaw = n.flaw
			snapshots = append(snapshots, s)
		}
	}
}

const descends = "descends from "

// because returns the problem as the end of a relative clause.
func (f *flaw) because() string {
	if strings.HasPrefix(f.problem, descends) {
		return "is left out"
	}
	return f.problem
}

// markNeeded marks the snapshots that containerd names, and their ancestors, and which of them are
// adopted. Ancestors of a snapshot without a flaw have none.
func (j *judgement) markNeeded() {
	for _, s := range j.snapshots {
		if len(s.names) == 0 {
			continue
		}
		flawed := s.flawed()
		for at := s; at != nil && (!at.named || !flawed && !at.needed); at = at.parent {
			at.named, at.needed = true, at.needed || !flawed
		}
	}
}
