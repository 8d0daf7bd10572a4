package metadb

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

func subject(ns *Namespace, key string) string {
	return fmt.Sprintf("snapshot %q in namespace %q", key, ns.Name)
}

// problems returns the contradictions between the records of a namespace.
func (ns *Namespace) problems() []Problem {
	byKey := make(map[string]*Snapshot, len(ns.Snapshots))
	for i := range ns.Snapshots {
		byKey[ns.Snapshots[i].Key] = &ns.Snapshots[i]
	}
	var found []Problem
	for i := range ns.Snapshots {
		s := &ns.Snapshots[i]
		for _, text := range s.problems(ns, byKey) {
			found = append(found, Problem{subject(ns, s.Key), text})
		}
	}
	for _, c := range ns.Containers {
		if c.SnapshotKey != "" && byKey[c.SnapshotKey] == nil {
			found = append(found, Problem{
				fmt.Sprintf("container %q in namespace %q", c.ID, ns.Name),
				fmt.Sprintf("its snapshot %q does not exist", c.SnapshotKey),
			})
		}
	}
	return found
}

func (s *Snapshot) problems(ns *Namespace, byKey map[string]*Snapshot) []string {
	var texts []string
	add := func(format string, args ...any) { texts = append(texts, fmt.Sprintf(format, args...)) }
	if s.Backend == "" {
		add("it has no name in the snapshotter") // containerd ignores it then (core/metadata/snapshot.go, getKey)
	}
	if number, ok := numberOf(ns.Name, s); ok && number > ns.Sequence {
		add("its number %d is higher than the last one used, %d: it may be used again", number, ns.Sequence)
	}
	if parent := byKey[s.Parent]; s.Parent != "" {
		switch _, linked := slices.BinarySearch(childrenOf(parent), s.Key); {
		case parent == nil:
			add("its parent %q does not exist", s.Parent)
		case !linked:
			add("its parent %q does not list it as a child, and could be removed", s.Parent)
		}
	}
	for _, key := range s.Children {
		switch child := byKey[key]; {
		case child == nil:
			add("its child %q does not exist, so the snapshot cannot be removed", key)
		case child.Parent != s.Key:
			add("its child %q has the parent %q", key, child.Parent)
		}
	}
	return texts
}

func childrenOf(s *Snapshot) []string {
	if s == nil {
		return nil
	}
	return s.Children
}

// numberOf returns the number in the snapshot's name in the snapshotter, if containerd made that
// name in this namespace: NAMESPACE/NUMBER/KEY (core/metadata/snapshot.go, createKey). KEY is
// mostly the snapshot's key before its Commit.
func numberOf(namespace string, s *Snapshot) (uint64, bool) {
	rest, ok := strings.CutPrefix(s.Backend, namespace+"/")
	if !ok {
		return 0, false
	}
	digits, _, ok := strings.Cut(rest, "/")
	number, err := strconv.ParseUint(digits, 10, 64)
	return number, ok && err == nil
}
