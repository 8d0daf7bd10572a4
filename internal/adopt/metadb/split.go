package metadb

import (
	"slices"
	"strings"
)

// split returns the expected Names under the new name and under the old one after Rename.
func (n Names) split(to string, leave LeaveOut) (moved, left Names) {
	moved = Names{Snapshotter: to, Version: n.Version}
	left = Names{Snapshotter: n.Snapshotter, Version: n.Version}
	for _, ns := range n.Namespaces {
		s := splitter{from: n.Snapshotter, to: to, out: leave[ns.Name]}
		s.moved.Name, s.left.Name = ns.Name, ns.Name
		s.split(ns)
		moved.add(s.moved)
		left.add(s.left)
	}
	return moved, left
}

// add adds a namespace, unless it does not name the snapshotter.
func (n *Names) add(ns Namespace) {
	if !ns.Bucket && !ns.Default && (Names{Namespaces: []Namespace{ns}}).Vacant() {
		return
	}
	sortLabels(ns.Labels)
	n.Namespaces = append(n.Namespaces, ns)
}

// splitter divides the entries of a namespace that name a snapshotter.
type splitter struct {
	from, to    string
	out         map[string]bool
	moved, left Namespace
}

func (s *splitter) split(ns Namespace) {
	byKey := make(map[string]*Snapshot, len(ns.Snapshots))
	for i := range ns.Snapshots {
		byKey[ns.Snapshots[i].Key] = &ns.Snapshots[i]
	}
	for _, one := range ns.Snapshots {
		if !s.out[one.Key] {
			one.Children = slices.DeleteFunc(slices.Clone(one.Children), func(key string) bool {
				return s.out[key] && byKey[key] != nil && byKey[key].Parent == one.Key
			})
			s.moved.Snapshots = append(s.moved.Snapshots, one)
			continue
		}
		s.left.Snapshots = append(s.left.Snapshots, one)
		if !s.out[one.Parent] && slices.Contains(childrenOf(byKey[one.Parent]), one.Key) {
			s.moved.Labels = append(s.moved.Labels, Label{s.object(one.Key), labelRef + s.to + parentSuffix, one.Parent})
		}
	}
	s.moved.Bucket, s.moved.Sequence, s.moved.Default = ns.Bucket, ns.Sequence, ns.Default
	if s.left.Bucket = len(s.left.Snapshots) > 0; s.left.Bucket {
		s.left.Sequence = ns.Sequence
	}
	s.moved.Containers = ns.Containers
	for _, c := range ns.Containers {
		if s.out[c.SnapshotKey] {
			label := Label{keyContainers + "/" + c.ID, labelRef + s.from + containerSuffix, c.SnapshotKey}
			s.left.Labels = append(s.left.Labels, label)
		}
	}
	for _, l := range ns.Leases {
		stay, move := Lease{ID: l.ID}, Lease{ID: l.ID}
		for _, key := range l.Snapshots {
			if s.out[key] {
				stay.Snapshots = append(stay.Snapshots, key)
			} else {
				move.Snapshots = append(move.Snapshots, key)
			}
		}
		if len(stay.Snapshots) > 0 {
			s.left.Leases = append(s.left.Leases, stay)
		}
		if len(stay.Snapshots) == 0 || len(move.Snapshots) > 0 {
			s.moved.Leases = append(s.moved.Leases, move)
		}
	}
	for _, l := range ns.Labels {
		if key, ok := strings.CutPrefix(l.Object, keySnapshots+"/"+s.from+"/"); ok {
			l.Object = s.object(key)
		}
		if s.out[referent([]byte(l.Key), []byte(l.Value))] {
			s.left.Labels = append(s.left.Labels, l)
			continue
		}
		before, _, after, _ := splitLabel([]byte(l.Key))
		l.Key = string(before) + s.to + string(after)
		s.moved.Labels = append(s.moved.Labels, l)
	}
}

// object returns a snapshot's name in Label.Object.
func (s *splitter) object(key string) string {
	if s.out[key] {
		return keySnapshots + "/" + s.from + "/" + key
	}
	return keySnapshots + "/" + s.to + "/" + key
}
