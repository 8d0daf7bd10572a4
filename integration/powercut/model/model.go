// Package model is what is known from outside of a machine: what its snapshotter
// and its containerd have acknowledged, and so must still have after a power cut.
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
	View    = "view"
	Write   = "write" // what is in an active snapshot that has been unmounted
	Commit  = "commit"
	Remove  = "remove"

	Pull            = "pull"
	RemoveImage     = "remove image"
	Run             = "run" // a container, which stays when its process has ended
	RemoveContainer = "remove container"
)

// What an Event says other than operations.
const (
	// Phase begins the phase that Key names.
	Phase = "phase"
	// Settled says whether the operation in doubt has taken effect.
	Settled = "settled"
	// Verified says what was found as it must be.
	Verified = "verified"
)

// Event is a line that the workload prints: Begin before an operation is asked
// for, and again without it once the operation was acknowledged.
type Event struct {
	Begin  bool   `json:"begin,omitempty"`
	Op     string `json:"op"`
	Key    string `json:"key,omitempty"`    // of a snapshot; an image's name, a container's, a phase's
	Name   string `json:"name,omitempty"`   // that a Commit gives; of the top layer of a pulled image
	Parent string `json:"parent,omitempty"` // of a snapshot; a container's image
	Digest string `json:"digest,omitempty"` // of what is written, committed, pulled

	Done  bool   `json:"done,omitempty"` // of Settled
	Count *Count `json:"count,omitempty"`
}

// Operation says whether the event is about something that must not be lost.
func (e Event) Operation() bool { return e.Op != Phase && e.Op != Settled && e.Op != Verified }

func (e Event) String() string {
	s := e.Op + " " + e.Key
	if e.Op == Commit {
		s += " as " + e.Name
	}
	return s
}

// Count is how much was found as it must be.
type Count struct {
	Snapshots  int `json:"snapshots"`
	Digests    int `json:"digests"` // of them, those whose content was read
	Images     int `json:"images,omitempty"`
	Containers int `json:"containers,omitempty"`
}

// Add adds another count.
func (c *Count) Add(o Count) {
	c.Snapshots += o.Snapshots
	c.Digests += o.Digests
	c.Images += o.Images
	c.Containers += o.Containers
}

// Snapshot is what a key must be.
type Snapshot struct {
	Kind   string `json:"kind"` // as snapshots.Kind prints it
	Parent string `json:"parent,omitempty"`
	Digest string `json:"digest,omitempty"` // none if its content is not known
}

// Image is what an image must be.
type Image struct {
	Top    string `json:"top"` // the key of its uppermost layer
	Digest string `json:"digest"`
}

// Container is what a container must be.
type Container struct {
	Image  string `json:"image"`
	Digest string `json:"digest"` // of the file that it has written
}

// Model is the state after some events.
type Model struct {
	Snapshots  map[string]Snapshot  `json:"snapshots"`
	Images     map[string]Image     `json:"images"`
	Containers map[string]Container `json:"containers"`
	// Doubt holds the operation that was under way when the power was cut: it may
	// have taken effect or not.
	Doubt *Event `json:"doubt,omitempty"`
}

// New returns the model of a machine on which nothing has been done.
func New() *Model {
	return &Model{
		Snapshots: make(map[string]Snapshot), Images: make(map[string]Image), Containers: make(map[string]Container),
	}
}

// Apply brings the model up to date.
func (m *Model) Apply(e Event) {
	switch {
	case e.Op == Settled:
		m.settle(e.Done)
	case !e.Operation():
	case e.Begin:
		m.Doubt = &e
	default:
		m.Doubt = nil
		m.apply(e)
	}
}

func (m *Model) apply(e Event) {
	switch e.Op {
	case Prepare:
		m.Snapshots[e.Key] = Snapshot{Kind: "Active", Parent: e.Parent}
	case View:
		m.Snapshots[e.Key] = Snapshot{Kind: "View", Parent: e.Parent}
	case Write:
		s := m.Snapshots[e.Key]
		s.Digest = e.Digest
		m.Snapshots[e.Key] = s
	case Commit:
		m.Snapshots[e.Name] = Snapshot{Kind: "Committed", Parent: m.Snapshots[e.Key].Parent, Digest: e.Digest}
		delete(m.Snapshots, e.Key)
	case Remove:
		delete(m.Snapshots, e.Key)
	case Pull:
		m.Images[e.Key] = Image{Top: e.Name, Digest: e.Digest}
	case RemoveImage:
		delete(m.Images, e.Key)
	case Run:
		m.Containers[e.Key] = Container{Image: e.Parent, Digest: e.Digest}
	case RemoveContainer:
		delete(m.Containers, e.Key)
	}
}

// settle ends the doubt.
func (m *Model) settle(done bool) {
	switch e := m.Doubt; {
	case e == nil:
	case e.Op == Write:
		m.apply(Event{Op: Write, Key: e.Key}) // it may have taken effect in part
	case done:
		m.apply(*e)
	}
	m.Doubt = nil
}

// Follow reads events from a stream, whose last line may have been cut short.
func Follow(r io.Reader, each func(Event)) error {
	for dec := json.NewDecoder(r); ; {
		var e Event
		err := dec.Decode(&e)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read what the workload printed: %w", err)
		}
		each(e)
	}
}
