package snapshotter

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

const (
	// reaperWorkers is how many volumes are worked on at a time. Removing a
	// device is nearly all waiting in the kernel, and the waits overlap.
	reaperWorkers = 8
	// A volume that cannot be dealt with, mostly because it is still mounted,
	// is tried again after a time that doubles between these bounds.
	retryFirst = 50 * time.Millisecond
	retryMost  = 30 * time.Second
	// containerd removes snapshots one after the other under a lock that every
	// Prepare waits for, and calls Cleanup after that. So what Remove leaves to do
	// waits until it was not called for laterDelay, but no longer than laterMost.
	laterDelay = 100 * time.Millisecond
	laterMost  = time.Second
)

// reaper settles volumes in the background: it calls settle for each id that it
// is given until that succeeds.
type reaper struct {
	settle func(ctx context.Context, id thin.ID, leftover bool) error
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	jobs    map[thin.ID]*job
	queue   []*job
	workers int
	// later are those that are to be queued when the timer fires.
	later      []*job
	laterSince time.Time
	laterTimer *time.Timer
	// rounds is closed, and made anew, whenever a round ends.
	rounds chan struct{}
	done   sync.WaitGroup
}

// job is a volume that is waiting, or being worked on.
type job struct {
	id thin.ID
	// leftover says that the volume is owned by nobody, and is to be deleted:
	// the store alone cannot tell that from a volume that is being made.
	leftover bool
	queued   bool
	running  bool
	// later says that it is among those that are to be queued later, and so not done with.
	later bool
	// again asks for another round after the one that is running.
	again bool
	// rounds counts those that have ended, failures those in a row.
	rounds, failures int
	retry            *time.Timer
}

func newReaper(settle func(ctx context.Context, id thin.ID, leftover bool) error) *reaper {
	ctx, cancel := context.WithCancel(context.Background())
	return &reaper{settle: settle, ctx: ctx, cancel: cancel, jobs: make(map[thin.ID]*job), rounds: make(chan struct{})}
}

// add has a volume settled soon.
func (r *reaper) add(id thin.ID, leftover bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	j := r.job(id)
	j.leftover = j.leftover || leftover
	r.enqueue(j)
}

// addLater is add when there is nothing more urgent; see laterDelay.
func (r *reaper) addLater(id thin.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.later) == 0 {
		r.laterSince = time.Now()
	}
	j := r.job(id)
	j.later = true
	r.later = append(r.later, j)
	if r.laterTimer == nil {
		r.laterTimer = time.AfterFunc(laterDelay, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.enqueueLater()
		})
		return
	}
	r.laterTimer.Reset(min(laterDelay, max(0, laterMost-time.Since(r.laterSince))))
}

func (r *reaper) enqueueLater() {
	for _, j := range r.later {
		j.later = false
		r.enqueue(j)
	}
	r.later = nil
}

// job returns the job of a volume, which is made if there is none.
func (r *reaper) job(id thin.ID) *job {
	j := r.jobs[id]
	if j == nil {
		j = &job{id: id}
		r.jobs[id] = j
	}
	return j
}

func (r *reaper) enqueue(j *job) {
	switch {
	case r.ctx.Err() != nil, j.queued:
		return
	case j.running:
		j.again = true
		return
	}
	if j.retry != nil {
		j.retry.Stop()
		j.retry = nil
	}
	j.queued = true
	r.queue = append(r.queue, j)
	if r.workers < reaperWorkers {
		r.workers++
		r.done.Go(r.work)
	}
}

func (r *reaper) work() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) > 0 && r.ctx.Err() == nil {
		j := r.queue[0]
		r.queue = r.queue[1:]
		j.queued, j.running = false, true
		leftover := j.leftover
		r.mu.Unlock()
		err := r.settle(r.ctx, j.id, leftover)
		r.mu.Lock()
		r.finish(j, err)
	}
	r.workers--
}

func (r *reaper) finish(j *job, err error) {
	j.running = false
	j.rounds++
	close(r.rounds)
	r.rounds = make(chan struct{})
	if err == nil {
		j.failures = 0
	}
	switch {
	case j.again:
		j.again = false
		r.enqueue(j)
	case err == nil && j.later:
	case err == nil && r.jobs[j.id] == j:
		delete(r.jobs, j.id)
	case err == nil:
		// Another one has taken its place.
	case r.ctx.Err() == nil:
		delay := min(retryFirst<<min(j.failures, 16), retryMost)
		j.failures++
		log.L.WithField("volume", j.id).WithField("retry", delay).WithError(err).Debug("volume not settled yet")
		j.retry = time.AfterFunc(delay, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			j.retry = nil
			r.enqueue(j)
		})
	}
}

// BackgroundCounts tells what the background has to do: volumes to be deactivated or deleted.
type BackgroundCounts struct {
	Running uint64 // that are worked on
	Waiting uint64 // whose turn has not come
	// Deferred are those that could not be dealt with, mostly because they are in use; they are tried again.
	Deferred uint64
	// DeferredRemovals are the volumes whose devices could not be removed although nobody
	// is to use them any more, DeferredDeletions those that could not be deleted. Those
	// that are being tried again are among them.
	DeferredRemovals, DeferredDeletions uint64
}

// counts fills in all but what the deferred ones are deferred for, which the store
// knows; it returns which they are, and whether they are leftovers.
func (r *reaper) counts() (c BackgroundCounts, deferred map[thin.ID]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	deferred = make(map[thin.ID]bool)
	for _, j := range r.jobs {
		if j.failures > 0 {
			deferred[j.id] = j.leftover
		}
		switch {
		case j.running:
			c.Running++
		case j.retry != nil:
			c.Deferred++
		default:
			c.Waiting++
		}
	}
	return c, deferred
}

// drain tries every volume that is waiting once more, now, and returns when all
// of them were tried.
func (r *reaper) drain(ctx context.Context) error {
	type target struct {
		job    *job
		rounds int
	}
	r.mu.Lock()
	r.enqueueLater()
	var targets []target
	for _, j := range r.jobs {
		t := target{j, j.rounds + 1}
		if j.running {
			// The present round may have begun before what it is to see.
			t.rounds++
		}
		targets = append(targets, t)
		r.enqueue(j)
	}
	defer r.mu.Unlock()
	for _, t := range targets {
		for t.job.rounds < t.rounds {
			ended := r.rounds
			r.mu.Unlock()
			select {
			case <-ended:
			case <-ctx.Done():
			case <-r.ctx.Done():
			}
			r.mu.Lock()
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if r.ctx.Err() != nil {
				return nil
			}
		}
	}
	return nil
}

// stop ends the background work; rounds that are running are waited for, as far
// as that takes no longer than closeWait.
func (r *reaper) stop() {
	r.cancel()
	r.mu.Lock()
	if r.laterTimer != nil {
		r.laterTimer.Stop()
	}
	for _, j := range r.jobs {
		if j.retry != nil {
			j.retry.Stop()
		}
	}
	r.mu.Unlock()
	wait(&r.done, closeWait)
}

// Background tells what is left to do in the background.
func (s *Snapshotter) Background(ctx context.Context) (BackgroundCounts, error) {
	counts, deferred := s.reaper.counts()
	if len(deferred) == 0 {
		return counts, nil
	}
	err := s.store.View(ctx, func(tx *metadata.Tx) error {
		for id, leftover := range deferred {
			switch owner, owned := tx.Owner(uint32(id)); {
			case owned && owner.Kind != metadata.OwnerTrash:
				counts.DeferredRemovals++
			case owned, leftover:
				counts.DeferredDeletions++
			}
		}
		return nil
	})
	return counts, err
}
