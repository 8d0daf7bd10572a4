// Package model has the state of a machine as known from outside: all operations that its snapshotter and its
// containerd have acknowledged, and that must survive a power cut.
package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Operations of an Event.
const (
	Prepare = "prepare"
	View    = "view"
	Write   = "write" // the content of an unmounted active snapshot
	Commit  = "commit"
	Remove  = "remove"

	Pull            = "pull"
	RemoveImage     = "remove image"
	Run             = "run" // a container, which stays after the end of its process
	RemoveContainer = "remove container"
)

// Other Events.
const (
	// Phase starts the phase in Key.
	Phase = "phase"
	// Settled reports whether the operation in doubt has taken effect.
	Settled = "settled"
	// Verified has the number of successful checks.
	Verified = "verified"
)

// Event is a line of the workload's output. An operation is printed with Begin before its start, and without it after
// its acknowledgement.
type Event struct {
	Begin  bool   `json:"begin,omitempty"`
	Op     string `json:"op"`
	Key    string `json:"key,omitempty"`    // of a snapshot, an image, a container or a phase
	Name   string `json:"name,omitempty"`   // given by a Commit; the top layer of a pulled image
	Parent string `json:"parent,omitempty"` // of a snapshot; a container's image
	Digest string `json:"digest,omitempty"` // of the written, committed or pulled content

	Done  bool   `json:"done,omitempty"` // of Settled
	Count *Count `json:"count,omitempty"`
}

// Operation reports whether the event is an operation, which must not be lost.
func (e Event) Operation() bool { return e.Op != Phase && e.Op != Settled && e.Op != Verified }

func (e Event) String() string {
	s := e.Op + " " + e.Key
	if e.Op == Commit {
		s += " as " + e.Name
	}
	return s
}

// Count has the numbers of successful checks.
type Count struct {
	Snapshots  int `json:"snapshots"`
	Digests    int `json:"digests"` // checks that read the content
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

// Snapshot is the expected state of a key.
type Snapshot struct {
	Kind   string `json:"kind"` // as printed by snapshots.Kind
	Parent string `json:"parent,omitempty"`
	Digest string `json:"digest,omitempty"` // empty if the content is unknown
}

// Image is the expected state of an image.
type Image struct {
	Top    string `json:"top"` // key of its top layer
	Digest string `json:"digest"`
}

// Container is the expected state of a container.
type Container struct {
	Image  string `json:"image"`
	Digest string `json:"digest"` // of the file that it wrote
}

// Model is the expected state after some events.
type Model struct {
	Snapshots  map[string]Snapshot  `json:"snapshots"`
	Images     map[string]Image     `json:"images"`
	Containers map[string]Container `json:"containers"`
	// Doubt is the operation that was running when the power was cut: it may have taken effect or not.
	Doubt *Event `json:"doubt,omitempty"`
}

// New returns the model of an unused machine.
func New() *Model {
	return &Model{
		Snapshots: make(map[string]Snapshot), Images: make(map[string]Image), Containers: make(map[string]Container),
	}
}

// Apply updates the model by an event.
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

// settle resolves Doubt.
func (m *Model) settle(done bool) {
	switch e := m.Doubt; {
	case e == nil:
	case e.Op == Write:
		m.apply(Event{Op: Write, Key: e.Key}) // part of it may have taken effect
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
			return fmt.Errorf("read the output of the workload: %w", err)
		}
		each(e)
	}
}
