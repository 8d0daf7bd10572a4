package admin

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/log"
)

const (
	// recordStep is how often the fill is recorded.
	recordStep = 10 * time.Second
	// recordAge is how old what the kernel said may be for that: while there is room in the pool the daemon asks it this often
	// anyhow, and recording is no reason to ask once more.
	recordAge = 30 * time.Second
	// recordMost is how many points are kept.
	recordMost = 1000
)

// Recorder remembers how full the pool was. It keeps a fixed number of points, of which those that are long ago lie further
// apart, in proportion to their age. It is safe for concurrent use.
type Recorder struct {
	mu     sync.Mutex
	most   int
	points []Fill
}

// NewRecorder returns an empty one.
func NewRecorder() *Recorder { return &Recorder{most: recordMost} }

// Run records the fill of a backend's pool until ctx ends. A pool that does not answer adds no point.
func (r *Recorder) Run(ctx context.Context, backend Backend) {
	ticker := time.NewTicker(recordStep)
	defer ticker.Stop()
	for {
		if fill, err := backend.Fill(ctx, recordAge); err == nil {
			fill.At = time.Now()
			r.add(fill)
		} else if ctx.Err() == nil {
			log.G(ctx).WithError(err).Debug("the pool's fill is not recorded")
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// history returns the points so far.
func (r *Recorder) history() History {
	r.mu.Lock()
	defer r.mu.Unlock()
	return History{Points: append([]Fill{}, r.points...)}
}

func (r *Recorder) add(fill Fill) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// While nothing changes, the last point moves on: a long time of it needs two.
	if n := len(r.points); n >= 2 && alike(r.points[n-2], r.points[n-1]) && alike(r.points[n-1], fill) {
		r.points[n-1].At = fill.At
		return
	}
	r.points = append(r.points, fill)
	if len(r.points) > r.most {
		r.thin(fill.At)
	}
}

// alike tells whether two points differ in nothing but their time.
func alike(a, b Fill) bool {
	a.At = b.At
	return a == b
}

// thin drops the point whose neighbours are closest together for their age. What was used at it goes into the next one, so
// that no peak is forgotten. The first and the last point stay.
func (r *Recorder) thin(now time.Time) {
	least, drop := 0.0, 0
	for i := 1; i < len(r.points)-1; i++ {
		gap := r.points[i+1].At.Sub(r.points[i-1].At).Seconds()
		age := now.Sub(r.points[i].At).Seconds() + recordStep.Seconds()
		if weight := gap / age; drop == 0 || weight < least {
			least, drop = weight, i
		}
	}
	next := &r.points[drop+1]
	next.DataUsed = max(next.DataUsed, r.points[drop].DataUsed)
	next.MetadataUsed = max(next.MetadataUsed, r.points[drop].MetadataUsed)
	r.points = append(r.points[:drop], r.points[drop+1:]...)
}
