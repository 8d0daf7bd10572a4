// Package fakepool is a thin pool in memory that follows the kernel's rules: which ids exist, which
// operations an active volume allows, and which errors they return. It is for tests of logic, and
// complements tests on the kernel.
package fakepool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// Fault is called before each call of a method, with the method's name. Its error is the call's
// error.
type Fault func(method string, id thin.ID) error

// Pool is a pool and the file systems on its volumes. Its methods may be called
// concurrently.
type Pool struct {
	fault atomic.Pointer[Fault]

	mu      sync.Mutex
	volumes map[thin.ID]*volume
	active  map[thin.ID]*device
	// foreign has the volumes whose names foreign devices have.
	foreign map[thin.ID]bool
	status  pool.Status
	// committedID is the transaction id on the disk. The one in status may not be committed.
	committedID uint64
	calls       map[string]int
	time        uint32
	trees       uint64
	// shares has the directories of bind mounts, with the mounted volumes.
	shares map[string]thin.ID
}

// volume is the state on stable storage.
type volume struct {
	// origins has the ids of its origin and of the origin's origins, oldest first.
	origins []thin.ID
	// content stands for the written data.
	content string
	uuid    string
	bytes   uint64
	broken  bool
	// Times of the pool, from 1: of the creation, of the last snapshot of it, and of the last
	// write, also a write to its origin before its creation. The last is 0 without a write.
	created, snapshotted, written uint32
	// tree is equal in volumes with the same mappings.
	tree uint64
}

// device is an active volume.
type device struct {
	readOnly, suspended bool
	refusesWrites       bool // see SetReadOnly
	openers             int
	discards            int // openers that discard, which CreateSnap allows: the content that they discard is not needed
	// unflushed is content that a crash would lose.
	unflushed *string
}

// New returns an empty pool with space for dataBytes.
func New(dataBytes uint64) *Pool {
	const blockBytes, metadataBytes = 64 << 10, 16 << 20
	p := &Pool{
		volumes: make(map[thin.ID]*volume),
		active:  make(map[thin.ID]*device),
		foreign: make(map[thin.ID]bool),
		calls:   make(map[string]int),
		shares:  make(map[string]thin.ID),
		time:    1,
	}
	p.status.BlockBytes = blockBytes
	p.status.Data = pool.Space{Total: dataBytes, Available: dataBytes}
	p.status.Metadata = pool.Space{Total: metadataBytes, Available: metadataBytes}
	p.status.Mode = thin.ModeReadWrite
	p.status.QueueIfNoSpace = true
	return p
}

// SetFault sets the Fault of all further calls.
func (p *Pool) SetFault(fault Fault) { p.fault.Store(&fault) }

// enter begins each call. It lets other goroutines run, like the kernel, and calls the Fault.
func (p *Pool) enter(ctx context.Context, method string, id thin.ID) (unlock func(), err error) {
	for range rand.IntN(3) {
		runtime.Gosched()
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if fault := p.fault.Load(); fault != nil {
		if err := (*fault)(method, id); err != nil {
			return nil, fmt.Errorf("%s %d: %w", method, id, err)
		}
	}
	p.mu.Lock()
	p.calls[method]++
	return p.mu.Unlock, nil
}

// CreateThin creates an empty volume.
func (p *Pool) CreateThin(ctx context.Context, id thin.ID) error {
	unlock, err := p.enter(ctx, "CreateThin", id)
	if err != nil {
		return fmt.Errorf("%w: %w", thin.ErrNotDone, err)
	}
	defer unlock()
	if p.volumes[id] != nil {
		return thin.ErrExists
	}
	p.volumes[id] = &volume{created: p.time, snapshotted: p.time, tree: p.newTree()}
	return nil
}

// CreateSnap creates a volume with the content of origin. It panics if origin may be written to at
// the same time: the kernel would return no error, and lose content.
func (p *Pool) CreateSnap(ctx context.Context, id, origin thin.ID) error {
	unlock, err := p.enter(ctx, "CreateSnap", id)
	if err != nil {
		return fmt.Errorf("%w: %w", thin.ErrNotDone, err)
	}
	defer unlock()
	from := p.volumes[origin]
	switch d := p.active[origin]; {
	case p.volumes[id] != nil:
		return thin.ErrExists
	case from == nil:
		return thin.ErrNoDevice
	case d != nil && !d.readOnly && !d.refusesWrites && !d.suspended && d.openers > d.discards:
		panic(fmt.Sprintf("volume %d is in use during a snapshot of it", origin))
	case d != nil && d.unflushed != nil:
		if !d.suspended {
			panic(fmt.Sprintf("volume %d has unflushed writes during a snapshot of it", origin))
		}
		from.content, d.unflushed = *d.unflushed, nil
	}
	origins := append(append([]thin.ID(nil), from.origins...), origin)
	p.time++
	from.snapshotted = p.time
	p.volumes[id] = &volume{
		origins: origins, content: from.content, uuid: from.uuid, bytes: from.bytes,
		created: p.time, snapshotted: p.time, written: from.written, tree: from.tree,
	}
	return nil
}

// Delete deletes an inactive volume.
func (p *Pool) Delete(ctx context.Context, id thin.ID) error {
	unlock, err := p.enter(ctx, "Delete", id)
	if err != nil {
		return err
	}
	defer unlock()
	switch {
	case p.volumes[id] == nil:
		return thin.ErrNoDevice
	case p.active[id] != nil:
		return thin.ErrBusy
	case p.volumes[id].broken:
		panic(fmt.Sprintf("volume %d with lost mappings is deleted", id))
	}
	delete(p.volumes, id)
	return nil
}

// Break makes Volumes report that a volume has lost its mappings. Delete then panics, because the
// kernel would damage the pool.
func (p *Pool) Break(id thin.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.volumes[id].broken = true
}

// Volumes returns the ids of the volumes, with false for one that has lost its mappings.
func (p *Pool) Volumes(ctx context.Context, first, last thin.ID) (map[thin.ID]bool, error) {
	unlock, err := p.enter(ctx, "Volumes", first)
	if err != nil {
		return nil, err
	}
	defer unlock()
	volumes := make(map[thin.ID]bool)
	for id := first; id <= last; id++ {
		if v := p.volumes[id]; v != nil {
			volumes[id] = !v.broken
		}
	}
	return volumes, nil
}

// Writes describes the writes to a volume.
func (p *Pool) Writes(ctx context.Context, id thin.ID) (thinmeta.Writes, error) {
	unlock, err := p.enter(ctx, "Writes", id)
	if err != nil {
		return thinmeta.Writes{}, err
	}
	defer unlock()
	v := p.volumes[id]
	if v == nil {
		return thinmeta.Writes{}, thin.ErrNoDevice
	}
	w := thinmeta.Writes{
		SinceCreation: v.written >= v.created, SinceSnapshot: v.written >= v.snapshotted,
		Snapshotted: v.snapshotted != v.created,
	}
	if v.written > 0 {
		w.Mapped = v.mapped()
		w.End = w.Mapped
	}
	return w, nil
}

// Twins returns the other volumes with the same mappings.
func (p *Pool) Twins(ctx context.Context, id thin.ID) (twins []thin.ID, err error) {
	unlock, err := p.enter(ctx, "Twins", id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	v := p.volumes[id]
	if v == nil {
		return nil, thin.ErrNoDevice
	}
	for other, o := range p.volumes {
		if other != id && o.tree == v.tree {
			twins = append(twins, other)
		}
	}
	return twins, nil
}

// newTree returns the number of a new mapping tree.
func (p *Pool) newTree() uint64 {
	p.trees++
	return p.trees
}

// Time returns the pool's time.
func (p *Pool) Time(ctx context.Context) (uint32, error) {
	unlock, err := p.enter(ctx, "Time", 0)
	if err != nil {
		return 0, err
	}
	defer unlock()
	return p.time, nil
}

// SetTime sets the pool's time, like snapshots by other users.
func (p *Pool) SetTime(time uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.time = time
}

// mapped returns the number of mapped blocks: one for each origin, one for each byte of content,
// and one more.
func (v *volume) mapped() uint64 { return uint64(len(v.origins) + len(v.content) + 1) }

// SetTransactionID changes the transaction id. The fault thin.ErrPoolReadOnly is a failed commit:
// as in the kernel, the pool becomes read-only, and its status has the new id, which is not on the
// disk.
func (p *Pool) SetTransactionID(ctx context.Context, from, to uint64) error {
	unlock, err := p.enter(ctx, "SetTransactionID", 0)
	isFailedCommit := errors.Is(err, thin.ErrPoolReadOnly)
	if isFailedCommit {
		p.mu.Lock()
		unlock = p.mu.Unlock
	} else if err != nil {
		return err
	}
	defer unlock()
	if !p.status.Changeable() {
		return thin.ErrPoolReadOnly
	}
	if p.status.TransactionID != from {
		return fmt.Errorf("transaction id is %d, not %d", p.status.TransactionID, from)
	}
	p.status.TransactionID = to
	if isFailedCommit {
		p.status.Mode, p.status.NeedsCheck = thin.ModeReadOnly, true
		return err
	}
	p.committedID = to
	return nil
}

// Status returns the status, which SetStatus can change.
func (p *Pool) Status(ctx context.Context) (pool.Status, error) {
	unlock, err := p.enter(ctx, "Status", 0)
	if err != nil {
		return pool.Status{}, err
	}
	defer unlock()
	status := p.status
	status.Asked = time.Now()
	return status, nil
}

// RecentStatus returns the same as Status.
func (p *Pool) RecentStatus(ctx context.Context, _ time.Duration) (pool.Status, error) {
	return p.Status(ctx)
}

// CachedStatus returns the same as Status.
func (p *Pool) CachedStatus(ctx context.Context, _ time.Duration) (pool.Status, error) {
	return p.Status(ctx)
}

// SetStatus changes the status.
func (p *Pool) SetStatus(change func(*pool.Status)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.status.TransactionID
	change(&p.status)
	if id := p.status.TransactionID; id != before {
		p.committedID = id
	}
}

// Activate activates a volume. It panics if the volume is active: the kernel would allow a second
// device under another name, and content would be lost.
func (p *Pool) Activate(ctx context.Context, id thin.ID, bytes uint64, readOnly bool) (pool.Volume, error) {
	unlock, err := p.enter(ctx, "Activate", id)
	if err != nil {
		return pool.Volume{}, err
	}
	defer unlock()
	v := p.volumes[id]
	if v == nil {
		return pool.Volume{}, thin.ErrNoDevice
	}
	if p.foreign[id] {
		return pool.Volume{}, pool.ErrNameTaken
	}
	if p.active[id] != nil {
		panic(fmt.Sprintf("volume %d is activated twice", id))
	}
	if bytes == 0 { // the kernel has no devices of size 0
		panic(fmt.Sprintf("volume %d is activated with size 0", id))
	}
	p.active[id] = &device{readOnly: readOnly}
	v.bytes = bytes
	return p.volume(id), nil
}

func (p *Pool) volume(id thin.ID) pool.Volume {
	d := p.active[id]
	return pool.Volume{
		ID: id, Path: path(id), OpenCount: d.openers, ReadOnly: d.readOnly || d.refusesWrites,
		Suspended: d.suspended,
		Device:    devmapper.Device{Live: true},
	}
}

// IsActive returns true if a volume is active.
func (p *Pool) IsActive(id thin.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.active[id] != nil
}

// VolumePath returns the path of a volume's device.
func (p *Pool) VolumePath(id thin.ID) string { return path(id) }

func path(id thin.ID) string { return fmt.Sprintf("/dev/mapper/fake-snap-%d", id) }

// Deactivate deactivates a volume. It keeps unflushed writes, because the kernel flushes at the
// last close.
func (p *Pool) Deactivate(ctx context.Context, id thin.ID) error {
	unlock, err := p.enter(ctx, "Deactivate", id)
	if err != nil {
		return err
	}
	defer unlock()
	d := p.active[id]
	if d == nil {
		return nil
	}
	if d.openers > 0 {
		return devmapper.ErrBusy
	}
	if d.unflushed != nil {
		p.volumes[id].content = *d.unflushed
	}
	delete(p.active, id)
	return nil
}

// Lookup returns an active volume.
func (p *Pool) Lookup(ctx context.Context, id thin.ID) (pool.Volume, error) {
	unlock, err := p.enter(ctx, "Lookup", id)
	if err != nil {
		return pool.Volume{}, err
	}
	defer unlock()
	if p.foreign[id] {
		return pool.Volume{}, pool.ErrNameTaken
	}
	if p.active[id] == nil {
		return pool.Volume{}, devmapper.ErrNotFound
	}
	return p.volume(id), nil
}

// Active returns the active volumes.
func (p *Pool) Active(ctx context.Context) ([]pool.Volume, error) {
	unlock, err := p.enter(ctx, "Active", 0)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var all []pool.Volume
	for id := range p.active {
		all = append(all, p.volume(id))
	}
	return all, nil
}

// Suspend suspends a volume.
func (p *Pool) Suspend(ctx context.Context, id thin.ID) error {
	return p.onDevice(ctx, "Suspend", id, func(d *device) { d.suspended = true })
}

// Resume resumes a volume.
func (p *Pool) Resume(id thin.ID) error {
	return p.onDevice(context.Background(), "Resume", id, func(d *device) { d.suspended = false })
}

// SetReadOnly makes a device refuse writes, or accept them again.
func (p *Pool) SetReadOnly(id thin.ID, readOnly bool) error {
	return p.onDevice(context.Background(), "SetReadOnly", id, func(d *device) { d.refusesWrites = readOnly })
}

// Flush writes the content to stable storage.
func (p *Pool) Flush(ctx context.Context, id thin.ID) error {
	return p.onDevice(ctx, "Flush", id, func(d *device) {
		if d.unflushed != nil {
			p.volumes[id].content, d.unflushed = *d.unflushed, nil
		}
	})
}

// Mapped returns the mapped bytes: a block for each origin, one for each byte of content, and one
// more.
func (p *Pool) Mapped(ctx context.Context, id thin.ID) (mapped uint64, err error) {
	err = p.onDevice(ctx, "Mapped", id, func(*device) {
		mapped = p.volumes[id].mapped() * p.status.BlockBytes
	})
	return mapped, err
}

func (p *Pool) onDevice(ctx context.Context, method string, id thin.ID, f func(*device)) error {
	unlock, err := p.enter(ctx, method, id)
	if err != nil {
		return err
	}
	defer unlock()
	d := p.active[id]
	if d == nil {
		return devmapper.ErrNotFound
	}
	f(d)
	return nil
}
