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
	// reaperWorkers is the number of volumes that are settled at a time. The removal of a device mostly
	// waits in the kernel, and the waits overlap.
	reaperWorkers = 8
	// A volume that cannot be settled, mostly because it is still mounted, is retried after a delay that
	// doubles between these bounds.
	retryFirst = 50 * time.Millisecond
	retryMost  = 30 * time.Second
	// containerd's garbage collector calls Remove for one snapshot after another under a lock that every
	// Prepare waits for, and then Cleanup. So deletions wait until Remove was not called for laterDelay,
	// but at most laterMost.
	laterDelay = 100 * time.Millisecond
	laterMost  = time.Second
)

// reaper settles volumes in the background: it calls settle for each id until that succeeds.
type reaper struct {
	settle func(ctx context.Context, id thin.ID, leftover bool) error
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	jobs    map[thin.ID]*job
	queue   []*job
	workers int
	// later are the jobs that laterTimer will queue.
	later      []*job
	laterSince time.Time
	laterTimer *time.Timer
	// roundEnded is closed and replaced when a round, one call of settle, ends.
	roundEnded chan struct{}
	done       sync.WaitGroup
}

type job struct {
	id thin.ID
	// leftover allows settle to delete a volume without an owner.
	leftover bool
	queued   bool
	running  bool
	// later is true while the job is in reaper.later: the end of a round does not finish it.
	later bool
	// again requests another round after the current one.
	again bool
	// rounds counts ended rounds, failures those that failed since the last success.
	rounds, failures int
	retry            *time.Timer
}

func newReaper(settle func(ctx context.Context, id thin.ID, leftover bool) error) *reaper {
	ctx, cancel := context.WithCancel(context.Background())
	return &reaper{settle: settle, ctx: ctx, cancel: cancel, jobs: make(map[thin.ID]*job), roundEnded: make(chan struct{})}
}

// add settles a volume at once.
func (r *reaper) add(id thin.ID, leftover bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	j := r.job(id)
	j.leftover = j.leftover || leftover
	r.enqueue(j)
}

// wake retries a volume at once if it is waiting to be settled.
func (r *reaper) wake(id thin.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if j := r.jobs[id]; j != nil {
		r.enqueue(j)
	}
}

// addLater settles a volume after laterDelay.
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
	close(r.roundEnded)
	r.roundEnded = make(chan struct{})
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
		// Another job has replaced it.
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

// BackgroundCounts counts the volumes that are to be deactivated or deleted in the background.
type BackgroundCounts struct {
	Running uint64 // being settled
	Waiting uint64 // queued
	// Deferred volumes could not be settled, mostly because they are in use. They are retried.
	Deferred uint64
	// DeferredRemovals counts the unneeded volumes whose mapped devices could not be removed,
	// DeferredDeletions the volumes that could not be deleted. Both include volumes that are being
	// retried.
	DeferredRemovals, DeferredDeletions uint64
}

// counts returns all counts except DeferredRemovals and DeferredDeletions, for which the store is needed.
// deferred has the deferred volumes; true is a leftover.
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

// drain tries every volume without delay, and returns when all were tried.
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
			// The current round may have read the store before the last change.
			t.rounds++
		}
		targets = append(targets, t)
		r.enqueue(j)
	}
	defer r.mu.Unlock()
	for _, t := range targets {
		for t.job.rounds < t.rounds {
			ended := r.roundEnded
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

// stop ends the background work. It waits up to closeWait for running rounds.
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
	waitAtMost(&r.done, closeWait)
}

// Background counts the volumes that are to be settled in the background.
func (s *Snapshotter) Background(ctx context.Context) (BackgroundCounts, error) {
	counts, deferred := s.reaper.counts()
	if len(deferred) == 0 {
		return counts, nil
	}
	err := s.store.View(ctx, func(tx *metadata.Tx) error {
		for id, leftover := range deferred {
			// The index of owners suffices, so an unreadable record does not prevent the counts.
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
