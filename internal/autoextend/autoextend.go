// Package autoextend extends a pool before it runs out of space, and reports the reason if it
// cannot. It also keeps the pool's files allocated. It waits for the kernel's events, and polls
// only while the pool cannot grow or resume as it should, or shares its disk with other programs.
package autoextend

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

const (
	// minInterval is the least time between two attempts of Run. Each device that appears or
	// disappears raises an event, up to a hundred a second on a busy machine.
	minInterval = time.Second
	// retryInterval is the time between two attempts while the pool cannot grow.
	retryInterval = 10 * time.Second
)

// Pool is the part of *pool.Pool that an Extender needs.
type Pool interface {
	Status(ctx context.Context) (pool.Status, error)
	Extend(ctx context.Context, dataBytes, metadataBytes uint64) error
	// Largest returns the sizes to which the two devices could grow, in bytes.
	Largest(ctx context.Context) (data, metadata uint64, err error)
	// KeepAllocated allocates the pool's files. If watch is true, the caller must repeat it in a
	// second.
	KeepAllocated(ctx context.Context) (watch bool, err error)
	// Monitor sets whether LVM's dmeventd extends the pool.
	Monitor(ctx context.Context, on bool) error
}

// Events waits for events of device-mapper. *devmapper.Events implements it.
type Events interface {
	Wait(ctx context.Context) error
}

// Report has the counters and the state of an Extender.
type Report struct {
	// Events counts the events received from the kernel.
	Events uint64
	// DataExtensions and MetadataExtensions count the extensions, including those by other
	// programs, such as dmeventd.
	DataExtensions, MetadataExtensions uint64
	// Stuck is the reason why the pool does not grow although it should, or "".
	Stuck string
	// Unallocated is the reason why the pool's files are not fully allocated, or "".
	Unallocated string
}

// Extender extends one pool. Its methods may be called concurrently.
type Extender struct {
	pool   Pool
	growth pool.Growth
	name   string

	// extending is held during an extension. deciding is held from a read of the status until the
	// extension that it requires has ended.
	extending, deciding sync.Mutex

	// running ends when stop is called or the context of Run ends.
	running context.Context
	stop    context.CancelFunc

	mu     sync.Mutex
	report Report
	state  string // the last logged state of the pool
	// watched is true if other programs write to the disk below the pool.
	watched bool
	// noRoom is the time of MakeRoom's last failure. making is closed when the running MakeRoom
	// ends.
	noRoom time.Time
	making chan struct{}
	// dataBytes and metadataBytes are the largest sizes seen.
	dataBytes, metadataBytes uint64
}

// New returns an Extender for the pool p, which log messages and errors call name.
func New(name string, p Pool, growth pool.Growth) *Extender {
	running, stop := context.WithCancel(context.Background())
	return &Extender{pool: p, growth: growth, name: name, running: running, stop: stop}
}

// Report returns the counters, and the reasons if the Extender cannot do its work.
func (e *Extender) Report() Report {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.report
}

// Run extends the pool when needed, first at the call, until ctx ends, which is not an error. Before
// it returns, it ends a running MakeRoom. Call Run once. With a threshold of 100 % it extends
// nothing, but still logs the pool's states and counts the extensions by other programs.
func (e *Extender) Run(ctx context.Context, events Events) error {
	defer e.awaitRoom()
	defer e.stop() // ends MakeRoom, also if the events fail
	defer context.AfterFunc(ctx, e.stop)()
	e.monitor(ctx, false)
	defer e.monitor(context.WithoutCancel(ctx), true)
	// The pool may have been loaded with another threshold, and so with another low water mark.
	if _, err := e.extend(ctx, 0, 0); err != nil {
		log.G(ctx).WithError(err).Warn("the pool's low water mark may differ from the configuration")
	}
	for ctx.Err() == nil {
		idle := e.attempt(ctx)
		select {
		case <-time.After(minInterval):
		case <-ctx.Done():
			return nil
		}
		if err := e.wait(ctx, events, idle); err != nil {
			return err
		}
	}
	return nil
}

// monitor sets whether LVM's dmeventd extends the pool, which it does while Run does not.
func (e *Extender) monitor(ctx context.Context, on bool) {
	if err := e.pool.Monitor(ctx, on); err != nil && ctx.Err() == nil {
		log.G(ctx).WithError(err).Warn("dmeventd's monitoring of the pool could not be changed")
	}
}

// wait returns at the next event, when ctx ends or, unless idle is set, at the next attempt. While
// it waits, it keeps the pool's files allocated.
func (e *Extender) wait(ctx context.Context, events Events, idle bool) error {
	retry := time.Now().Add(retryInterval - minInterval)
	for {
		watched := e.keepAllocated(ctx)
		if watched && !idle {
			return nil // Run has waited a second: try again at once
		}
		waiting, cancel := ctx, func() {}
		switch {
		case watched:
			waiting, cancel = context.WithTimeout(ctx, minInterval)
		case !idle:
			waiting, cancel = context.WithDeadline(ctx, retry)
		}
		happened, err := e.waitUntil(waiting, events)
		cancel()
		if happened || err != nil || ctx.Err() != nil || !watched {
			return err
		}
	}
}

// waitUntil returns at the next event, or when ctx ends.
func (e *Extender) waitUntil(ctx context.Context, events Events) (happened bool, err error) {
	err = events.Wait(ctx)
	switch {
	case err == nil:
		e.mu.Lock()
		e.report.Events++
		e.mu.Unlock()
	case ctx.Err() == nil:
		return false, fmt.Errorf("wait for events of pool %s: %w", e.name, err)
	}
	return err == nil, nil
}

// keepAllocated allocates the pool's files, and returns whether to repeat that in a second. It logs
// failure and recovery.
func (e *Extender) keepAllocated(ctx context.Context) (watched bool) {
	watched, err := e.pool.KeepAllocated(ctx)
	if ctx.Err() != nil {
		return watched
	}
	reason := ""
	if err != nil {
		reason = err.Error()
	}
	e.mu.Lock()
	before := e.report.Unallocated
	e.report.Unallocated, e.watched = reason, watched
	e.mu.Unlock()
	switch entry := log.G(ctx).WithField("pool", e.name); {
	case reason != "" && before == "":
		entry.Warn("the disk below the pool may have too little space for the whole pool, and writes may fail: " + reason)
	case reason == "" && before != "":
		entry.Info("the disk below the pool has enough space for the whole pool again")
	}
	return watched
}

// attempt extends the pool if it is short of space. It returns true if nothing can change before
// the next event.
func (e *Extender) attempt(ctx context.Context) (idle bool) {
	stuck, idle := e.extendFor(ctx, e.growth)
	e.setStuck(ctx, stuck)
	return idle
}

// extendFor extends the pool if growth requires it. It returns the reason if it cannot, or "".
func (e *Extender) extendFor(ctx context.Context, growth pool.Growth) (stuck string, idle bool) {
	e.deciding.Lock()
	defer e.deciding.Unlock()
	status, err := e.pool.Status(ctx)
	if err != nil {
		return "its status cannot be read: " + err.Error(), false
	}
	e.recordSizes(ctx, status)
	defer func() { e.logState(ctx, status) }()
	if status.Mode != thin.ModeReadWrite && status.Mode != thin.ModeOutOfDataSpace && !status.MetadataFull() {
		return "", true // it cannot be extended in this state
	}
	// Log the state after the extension: a pool that it made writable again is not degraded.
	status, stuck = e.grow(ctx, status, growth)
	return stuck, stuck == "" && !status.HoldsBackNeedlessly()
}

// grow extends the pool as growth requires, and returns its new status. stuck is the reason if it
// cannot.
func (e *Extender) grow(
	ctx context.Context, status pool.Status, growth pool.Growth,
) (after pool.Status, stuck string) {
	data, metadata, stuck := e.target(ctx, status, growth)
	for failed := false; data > status.Data.Total || metadata > status.Metadata.Total ||
		status.HoldsBackNeedlessly(); failed = true {
		after, err := e.extend(ctx, data, metadata)
		if err == nil {
			return after, stuck
		}
		// Another program may have taken the space since Largest. Try only once more, with
		// less: on a busy disk the space shrinks all the time.
		d, m, why := e.target(ctx, status, growth)
		if failed || d > data || m > metadata || d == data && m == metadata {
			return status, err.Error()
		}
		data, metadata, stuck = d, m, why
	}
	return status, stuck
}

// target returns the sizes in bytes to which the two devices should grow now. stuck is the reason
// if that is not enough.
func (e *Extender) target(
	ctx context.Context, status pool.Status, growth pool.Growth,
) (data, metadata uint64, stuck string) {
	d := device{kind: "data", Space: status.Data, blockBytes: status.BlockBytes, limit: growth.DataLimit,
		step:   growth.DataStep,
		remedy: "raise pool.loop.data_size, extend it with `thinsnap pool extend`, or remove snapshots"}
	m := device{kind: "metadata", Space: status.Metadata, blockBytes: pool.MetadataBlockBytes,
		limit: pool.MaxMetadataBytes, remedy: "remove snapshots"}
	// The kernel has its own low water mark for metadata, and raises one event there.
	m.low = status.MetadataLowWater * pool.MetadataBlockBytes
	if !d.short(growth) && !m.short(growth) {
		return d.Total, m.Total, ""
	}
	var err error
	if d.largest, m.largest, err = e.pool.Largest(ctx); errors.Is(err, pool.ErrNotOurs) {
		short := d
		if !d.short(growth) {
			short = m
		}
		return d.Total, m.Total, short.fill() + ": " + err.Error()
	} else if err != nil {
		return d.Total, m.Total, err.Error()
	}
	data, stuck = d.grown(growth)
	metadata, stuckMetadata := m.grown(growth)
	return data, metadata, cmp.Or(stuck, stuckMetadata)
}

// setStuck records why the pool does not grow, or "". It logs the first of consecutive reasons.
func (e *Extender) setStuck(ctx context.Context, stuck string) {
	e.mu.Lock()
	before := e.report.Stuck
	e.report.Stuck = stuck
	e.mu.Unlock()
	// Later reasons mostly differ only in their numbers.
	if stuck != "" && before == "" && ctx.Err() == nil {
		log.G(ctx).WithField("pool", e.name).Warn("pool autoextend is stuck: " + stuck)
	}
}

func (e *Extender) logState(ctx context.Context, status pool.Status) {
	state := string(status.Mode)
	if status.NeedsCheck {
		state += ", needs_check"
	}
	e.mu.Lock()
	before := e.state
	e.state = state
	e.mu.Unlock()
	entry := log.G(ctx).WithField("pool", e.name).WithField("state", state)
	switch {
	case state == before:
	case state != string(thin.ModeReadWrite):
		entry.Warn("pool degraded: see `thinsnap pool status` and dmesg")
	case before != "":
		entry.Info("pool recovered")
	}
}

// Extend extends the pool's devices to the given sizes in bytes. 0 and the present size leave a
// device as it is. A smaller size, or one above the kernel's limit, fails with
// errdefs.ErrInvalidArgument.
func (e *Extender) Extend(ctx context.Context, dataBytes, metadataBytes uint64) error {
	status, err := e.pool.Status(ctx)
	if err != nil {
		return err
	}
	e.recordSizes(ctx, status)
	for _, want := range []struct {
		kind                  string
		bytes, current, limit uint64
	}{
		{"data", dataBytes, status.Data.Total, 0},
		{"metadata", metadataBytes, status.Metadata.Total, pool.MaxMetadataBytes},
	} {
		switch {
		case want.bytes == 0:
		case want.bytes < want.current:
			return fmt.Errorf("the %s of pool %s has %d bytes and cannot shrink to %d: %w",
				want.kind, e.name, want.current, want.bytes, errdefs.ErrInvalidArgument)
		case want.limit > 0 && want.bytes > want.limit:
			return fmt.Errorf("the kernel uses at most %d bytes of %s, not %d: %w",
				want.limit, want.kind, want.bytes, errdefs.ErrInvalidArgument)
		}
	}
	after, err := e.extend(ctx, dataBytes, metadataBytes)
	if err != nil {
		return err
	}
	_, _, stuck := e.target(ctx, after, e.growth)
	e.setStuck(ctx, stuck)
	return nil
}

func (e *Extender) extend(ctx context.Context, dataBytes, metadataBytes uint64) (after pool.Status, err error) {
	e.extending.Lock()
	defer e.extending.Unlock()
	if err := e.pool.Extend(ctx, dataBytes, metadataBytes); err != nil {
		return after, err
	}
	if after, err = e.pool.Status(ctx); err == nil {
		e.recordSizes(ctx, after)
	}
	return after, err
}

// recordSizes counts and logs the extensions since the last call, including those by dmeventd.
func (e *Extender) recordSizes(ctx context.Context, status pool.Status) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, device := range []struct {
		kind              string
		now               uint64
		largest, extended *uint64
	}{
		{"data", status.Data.Total, &e.dataBytes, &e.report.DataExtensions},
		{"metadata", status.Metadata.Total, &e.metadataBytes, &e.report.MetadataExtensions},
	} {
		if *device.largest > 0 && device.now > *device.largest {
			*device.extended++
			log.G(ctx).WithFields(log.Fields{"pool": e.name, "from": *device.largest, "to": device.now}).
				Info("pool " + device.kind + " extended")
		}
		// A failed pool reports no sizes.
		*device.largest = max(*device.largest, device.now)
	}
}
