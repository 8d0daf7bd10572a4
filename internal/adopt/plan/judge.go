package plan

import (
	"fmt"
	"strings"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
)

// judge makes the plan of an input. It only computes.
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
	j.spread()
	j.need()
	j.rows()
	j.adopt()
	j.obstruct()
	return p
}

// A judgement is a plan in the making.
type judgement struct {
	input
	plan *Plan

	snapshots []*snapshot // sorted by key
	names     []*name     // sorted by name space and name
	byKey     map[string]*snapshot
	byDevice  map[string]builtin.Device
	// taken are the ids of volumes that the adoption has: of snapshots, and of kept volumes.
	taken map[uint32]bool
}

// A snapshot is one of the built-in's.
type snapshot struct {
	builtin.Snapshot
	device    builtin.Device
	hasDevice bool
	volume    volume

	parent   *snapshot // nil without one, and if it does not exist
	children []*snapshot
	names    []*name
	flaw
	named  bool // by containerd, or what descends from it is
	needed bool // it is adopted
}

// size is the size of its mapped device, in bytes: whole sectors.
func (s *snapshot) size() uint64 { return sizeOf(s.device) }

func sizeOf(d builtin.Device) uint64 { return d.Bytes / devmapper.SectorBytes * devmapper.SectorBytes }

// A name is what containerd calls a snapshot.
type name struct {
	metadb.Snapshot
	namespace string
	snapshot  *snapshot // nil if the built-in does not have it
	parent    *name     // nil without one, and if it does not exist
	children  []*name
	flaw
}

// A flaw is what is wrong with a snapshot, or a name: nothing if problem is empty.
type flaw struct {
	problem, remedy string
}

func (f *flaw) flawed() bool { return f.problem != "" }

// find notes a flaw, unless there is one already.
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

// spread has what descends from a flawed snapshot or name be flawed, in both databases.
func (j *judgement) spread() {
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

// because is the problem in a relative clause.
func (f *flaw) because() string {
	if strings.HasPrefix(f.problem, descends) {
		return "is left out"
	}
	return f.problem
}

// need marks what containerd names, with its ancestors, and what of that is adopted. An ancestor of
// what is not flawed is not flawed.
func (j *judgement) need() {
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
