// Package keeper sees to it that a pool has space: it makes the pool larger when
// little is left, and says so when that cannot be done, or when the pool is unwell.
// It does so when the kernel tells that something has happened, and only looks again
// by itself while the pool is short of space and cannot grow.
package keeper

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
	// step is how long the keeper rests after a look: each device that comes or goes is
	// an event, and a busy machine has a hundred in a second.
	step = time.Second
	// retry is how soon it looks again while the pool cannot grow as it should.
	retry = 10 * time.Second
)

// Pool is what a Keeper needs of a pool; *pool.Pool is one.
type Pool interface {
	Status(ctx context.Context) (pool.Status, error)
	Extend(ctx context.Context, dataBytes, metadataBytes uint64) error
	// Largest returns how large the two devices could be.
	Largest(ctx context.Context) (data, metadata uint64, err error)
}

// Events is what tells that something has happened; *devmapper.Events is one.
type Events interface {
	Wait(ctx context.Context) error
}

// Report is what a keeper has done since it was made.
type Report struct {
	// Events is how often the kernel has told of something.
	Events uint64
	// DataExtensions and MetadataExtensions are how often the pool was seen to have
	// become larger, whoever made it so.
	DataExtensions, MetadataExtensions uint64
	// Stuck says why the pool does not grow although it should; "" if all is well.
	Stuck string
}

// Keeper keeps one pool. Its methods may be called concurrently.
type Keeper struct {
	pool   Pool
	growth pool.Growth
	name   string

	// extending is held while the pool is made larger.
	extending sync.Mutex

	mu     sync.Mutex
	report Report
	state  string // of the pool, as it was logged last
	// dataBytes and metadataBytes are how large the pool was when it was seen last.
	dataBytes, metadataBytes uint64
}

// New returns a keeper of the pool of that name, which its log messages have.
func New(name string, p Pool, growth pool.Growth) *Keeper {
	return &Keeper{pool: p, growth: growth, name: name}
}

// Report tells what the keeper has done, and how it is doing.
func (k *Keeper) Report() Report {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.report
}

// Run keeps the pool until ctx ends, which is no error. What has happened before it
// is called is seen, too. A pool that is not to grow is watched as well, for what it
// comes to, and for who else makes it larger.
func (k *Keeper) Run(ctx context.Context, events Events) error {
	// A pool that was loaded with another threshold has another low water mark.
	if _, err := k.extend(ctx, 0, 0); err != nil {
		log.G(ctx).WithError(err).Warn("the pool's low water mark is not as configured")
	}
	for ctx.Err() == nil {
		well := k.look(ctx)
		select {
		case <-time.After(step):
		case <-ctx.Done():
			return nil
		}
		if err := k.wait(ctx, events, well); err != nil {
			return err
		}
	}
	return nil
}

// wait returns when something has happened, when ctx has ended, or, unless all is
// well, after a while.
func (k *Keeper) wait(ctx context.Context, events Events, well bool) error {
	waiting := ctx
	if !well {
		var cancel context.CancelFunc
		waiting, cancel = context.WithTimeout(ctx, retry-step)
		defer cancel()
	}
	err := events.Wait(waiting)
	if err == nil {
		k.mu.Lock()
		k.report.Events++
		k.mu.Unlock()
		return nil
	}
	if waiting.Err() != nil {
		return nil
	}
	return fmt.Errorf("keep pool %s: %w", k.name, err)
}

// look makes the pool larger if it is short of space. It tells whether it is not
// any more.
func (k *Keeper) look(ctx context.Context) (well bool) {
	status, err := k.pool.Status(ctx)
	if err != nil {
		k.stuck(ctx, "its state cannot be read: "+err.Error())
		return false
	}
	k.note(ctx, status)
	defer func() { k.logState(ctx, status) }()
	if status.Mode != thin.ModeReadWrite && status.Mode != thin.ModeOutOfDataSpace {
		k.stuck(ctx, "")
		return true // until the kernel tells of something, nothing changes
	}
	data, metadata, why := k.wanted(ctx, status)
	if data > status.Data.Total || metadata > status.Metadata.Total {
		after, err := k.extend(ctx, data, metadata)
		if err != nil {
			why = err.Error()
		} else {
			status = after // a pool that was full for a moment is nothing to warn of
		}
	}
	k.stuck(ctx, why)
	return why == ""
}

// wanted returns how large the two devices should be, and why that is not as large as
// they should be.
func (k *Keeper) wanted(ctx context.Context, status pool.Status) (data, metadata uint64, why string) {
	d := device{what: "data", Space: status.Data, blockBytes: status.BlockBytes, limit: k.growth.DataLimit}
	m := device{what: "metadata", Space: status.Metadata, blockBytes: pool.MetadataBlockBytes, limit: pool.MaxMetadataBytes}
	// The kernel has a low water mark of its own for metadata, of which it tells once.
	m.low = status.MetadataLowWater * pool.MetadataBlockBytes
	if !d.short(k.growth) && !m.short(k.growth) {
		return d.Total, m.Total, ""
	}
	var err error
	if d.largest, m.largest, err = k.pool.Largest(ctx); errors.Is(err, pool.ErrNotOurs) {
		used := d
		if !d.short(k.growth) {
			used = m
		}
		return d.Total, m.Total, used.fill() + ": " + err.Error()
	} else if err != nil {
		return d.Total, m.Total, err.Error()
	}
	data, why = d.grown(k.growth)
	metadata, whyMetadata := m.grown(k.growth)
	return data, metadata, cmp.Or(why, whyMetadata)
}

// stuck notes why the pool does not grow, and logs it when that is news.
func (k *Keeper) stuck(ctx context.Context, why string) {
	k.mu.Lock()
	before := k.report.Stuck
	k.report.Stuck = why
	k.mu.Unlock()
	// The numbers in it change; that it is so does not.
	if why != "" && before == "" && ctx.Err() == nil {
		log.G(ctx).WithField("pool", k.name).Warn("the pool does not grow as it should: " + why)
	}
}

// logState says once that the pool is unwell, and once that it is well again.
func (k *Keeper) logState(ctx context.Context, status pool.Status) {
	state := string(status.Mode)
	if status.NeedsCheck {
		state += ", needs_check"
	}
	k.mu.Lock()
	before := k.state
	k.state = state
	k.mu.Unlock()
	entry := log.G(ctx).WithField("pool", k.name).WithField("state", state)
	switch {
	case state == before:
	case state != string(thin.ModeReadWrite):
		entry.Warn("the pool is unwell: see `thinsnap pool status`, and dmesg")
	case before != "":
		entry.Info("the pool is well again")
	}
}

// Extend makes the pool's devices so many bytes large; 0 leaves one as it is, and so
// does the size that it has. A smaller one is errdefs.ErrInvalidArgument: a pool
// never gets smaller.
func (k *Keeper) Extend(ctx context.Context, dataBytes, metadataBytes uint64) error {
	status, err := k.pool.Status(ctx)
	if err != nil {
		return err
	}
	k.note(ctx, status)
	for _, want := range []struct {
		what             string
		bytes, has, most uint64
	}{
		{"data", dataBytes, status.Data.Total, 0},
		{"metadata", metadataBytes, status.Metadata.Total, pool.MaxMetadataBytes},
	} {
		switch {
		case want.bytes == 0:
		case want.bytes < want.has:
			return fmt.Errorf("the %s of pool %s has %d bytes, and cannot be made smaller, to %d: %w",
				want.what, k.name, want.has, want.bytes, errdefs.ErrInvalidArgument)
		case want.most > 0 && want.bytes > want.most:
			return fmt.Errorf("the kernel uses %d bytes of %s at most, not %d: %w",
				want.most, want.what, want.bytes, errdefs.ErrInvalidArgument)
		}
	}
	after, err := k.extend(ctx, dataBytes, metadataBytes)
	if err != nil {
		return err
	}
	_, _, why := k.wanted(ctx, after)
	k.stuck(ctx, why)
	return nil
}

// extend makes the pool larger, and returns how it is then.
func (k *Keeper) extend(ctx context.Context, dataBytes, metadataBytes uint64) (after pool.Status, err error) {
	k.extending.Lock()
	defer k.extending.Unlock()
	if err := k.pool.Extend(ctx, dataBytes, metadataBytes); err != nil {
		return after, err
	}
	if after, err = k.pool.Status(ctx); err == nil {
		k.note(ctx, after)
	}
	return after, err
}

// note counts and logs that the pool has become larger since it was seen last, whoever
// made it so: LVM does it by itself, too, where its dmeventd runs.
func (k *Keeper) note(ctx context.Context, status pool.Status) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, device := range []struct {
		what      string
		now       uint64
		last, all *uint64
	}{
		{"data", status.Data.Total, &k.dataBytes, &k.report.DataExtensions},
		{"metadata", status.Metadata.Total, &k.metadataBytes, &k.report.MetadataExtensions},
	} {
		if *device.last > 0 && device.now > *device.last {
			*device.all++
			log.G(ctx).WithFields(log.Fields{"pool": k.name, "from": *device.last, "to": device.now}).
				Info("the pool has more " + device.what)
		}
		// A pool that has failed does not say how large it is.
		*device.last = max(*device.last, device.now)
	}
}
