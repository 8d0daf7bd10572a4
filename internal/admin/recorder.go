package admin

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/log"
)

const (
	// recordStep is the interval of the recording.
	recordStep = 10 * time.Second
	// recordAge is the greatest age of a recorded status. The daemon reads the status more often
	// for its own use, so the recording rarely costs a read.
	recordAge = 30 * time.Second
	// maxPoints limits the points that a Recorder keeps.
	maxPoints = 1000
)

// Recorder records the fill of the pool. It keeps a fixed number of points, whose distance grows in
// proportion to their age. It is safe for concurrent use.
type Recorder struct {
	mu     sync.Mutex
	most   int
	points []Fill
}

// NewRecorder returns an empty Recorder.
func NewRecorder() *Recorder { return &Recorder{most: maxPoints} }

// Run records the fill of a backend's pool until ctx ends. It adds no point while the pool does not
// answer.
func (r *Recorder) Run(ctx context.Context, backend Backend) {
	ticker := time.NewTicker(recordStep)
	defer ticker.Stop()
	for {
		if fill, err := backend.Fill(ctx, recordAge); err == nil {
			fill.At = time.Now()
			r.add(fill)
		} else if ctx.Err() == nil {
			log.G(ctx).WithError(err).Debug("the pool's fill was not recorded")
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (r *Recorder) history() History {
	r.mu.Lock()
	defer r.mu.Unlock()
	return History{Points: append([]Fill{}, r.points...)}
}

func (r *Recorder) add(fill Fill) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// While the fill does not change, move the last point: two points describe any span without a change.
	if n := len(r.points); n >= 2 && sameFill(r.points[n-2], r.points[n-1]) && sameFill(r.points[n-1], fill) {
		r.points[n-1].At = fill.At
		return
	}
	r.points = append(r.points, fill)
	if len(r.points) > r.most {
		r.thin(fill.At)
	}
}

// sameFill returns true if two points differ at most in their time.
func sameFill(a, b Fill) bool {
	a.At = b.At
	return a == b
}

// thin drops the point whose neighbours are closest together in relation to its age. Its maxima
// move to the next point, so that no peak is lost. The first and the last point stay.
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
