// Package model is what is known from outside of a snapshotter: what it has
// acknowledged, and so must still have after a power cut.
package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// The operations of an Event.
const (
	Prepare = "prepare"
	Commit  = "commit"
	View    = "view"
	Remove  = "remove"
)

// Event is a line that the workload prints: Begin before an operation is asked
// for, and again without it once the operation was acknowledged.
type Event struct {
	Begin  bool   `json:"begin,omitempty"`
	Op     string `json:"op"`
	Key    string `json:"key"`
	Name   string `json:"name,omitempty"` // of a Commit
	Parent string `json:"parent,omitempty"`
	Digest string `json:"digest,omitempty"` // of the content that a Commit commits
}

// Snapshot is what a key must be.
type Snapshot struct {
	Kind   string `json:"kind"` // as snapshots.Kind prints it
	Parent string `json:"parent,omitempty"`
	Digest string `json:"digest,omitempty"`
}

// Model is the state after some events.
type Model struct {
	Snapshots map[string]Snapshot `json:"snapshots"`
	// Doubt holds the operation that was under way when the power was cut: it may
	// have taken effect or not.
	Doubt *Event `json:"doubt,omitempty"`
}

// Apply brings the model up to date.
func (m *Model) Apply(e Event) {
	if m.Snapshots == nil {
		m.Snapshots = make(map[string]Snapshot)
	}
	if e.Begin {
		m.Doubt = &e
		return
	}
	m.Doubt = nil
	apply(m.Snapshots, e)
}

func apply(all map[string]Snapshot, e Event) {
	switch e.Op {
	case Prepare:
		all[e.Key] = Snapshot{Kind: "Active", Parent: e.Parent}
	case View:
		all[e.Key] = Snapshot{Kind: "View", Parent: e.Parent}
	case Commit:
		all[e.Name] = Snapshot{Kind: "Committed", Parent: all[e.Key].Parent, Digest: e.Digest}
		delete(all, e.Key)
	case Remove:
		delete(all, e.Key)
	}
}

// Settle decides what became of the operation in doubt: it took effect if the
// key that it makes, or takes away, says so.
func (m *Model) Settle(exists func(key string) bool) {
	if m.Doubt == nil {
		return
	}
	done := false
	switch e := *m.Doubt; e.Op {
	case Prepare, View:
		done = exists(e.Key)
	case Commit:
		done = exists(e.Name)
	case Remove:
		done = !exists(e.Key)
	}
	if done {
		apply(m.Snapshots, *m.Doubt)
	}
	m.Doubt = nil
}

// Read applies events from a stream, whose last line may have been cut short.
// It returns how many operations were acknowledged.
func (m *Model) Read(r io.Reader) (acknowledged int, err error) {
	for dec := json.NewDecoder(r); ; {
		var e Event
		err := dec.Decode(&e)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return acknowledged, nil
		}
		if err != nil {
			return acknowledged, fmt.Errorf("read what the workload printed: %w", err)
		}
		m.Apply(e)
		if !e.Begin {
			acknowledged++
		}
	}
}
