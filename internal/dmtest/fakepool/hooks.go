package fakepool

import (
	"fmt"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// byPath returns the active volume behind a device.
func (p *Pool) byPath(dev string) (thin.ID, *device) {
	for id, d := range p.active {
		if path(id) == dev {
			return id, d
		}
	}
	return 0, nil
}

// Write opens the volume behind a device, writes content to it and closes it. The pool's metadata
// has the write at once.
func (p *Pool) Write(dev, content string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, d := p.byPath(dev)
	if d == nil {
		return devmapper.ErrNotFound
	}
	if d.readOnly || d.refusesWrites {
		return fmt.Errorf("%s is read-only", dev)
	}
	d.unflushed = &content
	p.volumes[id].written, p.volumes[id].tree = p.time, p.newTree()
	return nil
}

// Read returns the content of the volume behind a device.
func (p *Pool) Read(dev string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, d := p.byPath(dev)
	switch {
	case d == nil:
		return "", devmapper.ErrNotFound
	case d.unflushed != nil:
		return *d.unflushed, nil
	}
	return p.volumes[id].content, nil
}

// Open adds delta openers to the volume behind a device.
func (p *Pool) Open(dev string, delta int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, d := p.byPath(dev)
	if d == nil {
		return devmapper.ErrNotFound
	}
	d.openers += delta
	return nil
}

// TakeName adds or removes a foreign device with the name of a volume, and deactivates the volume.
func (p *Pool) TakeName(id thin.ID, taken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.foreign[id] = taken
	delete(p.active, id)
}

// Crash drops the state that a power cut loses: the active volumes, writes that were not flushed,
// and a transaction id that was not committed.
func (p *Pool) Crash() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.TransactionID = p.committedID
	clear(p.active)
	clear(p.shares)
}

// Replace empties the pool, like a replacement by another one.
func (p *Pool) Replace() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.active)
	clear(p.shares)
	clear(p.volumes)
}

// IDs returns the ids of all volumes.
func (p *Pool) IDs() map[thin.ID]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	ids := make(map[thin.ID]bool)
	for id := range p.volumes {
		ids[id] = true
	}
	return ids
}

// Calls returns the number of calls of each method.
func (p *Pool) Calls() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	calls := make(map[string]int)
	for method, n := range p.calls {
		calls[method] = n
	}
	return calls
}
