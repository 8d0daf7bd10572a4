package powercut

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/thinsnap/thinsnap/integration/powercut/model"
)

const (
	// recordedOperations is how many operations a record is of.
	recordedOperations = 60
	// pointLimit is how long recording and a point may take.
	recordLimit, pointLimit = 5 * time.Minute, time.Minute
)

// Points records what thinsnap has written to a disk, and starts it on disks on
// which only such part of it is that a power cut could have left.
//
// The machine has one processor, and so its disk has one queue. With more, two
// flushes can be under way at a time, and the later one can be done first. The
// record has what was written with the flush that was begun first: so it would
// say of what the other has put on stable storage that it was not there yet, and
// thinsnap would seem to have lost what it has acknowledged.
func Points(ctx context.Context, o Options, points int) (Summary, error) {
	var sum Summary
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, recordLimit+time.Duration(points)*pointLimit)
	defer cancel()
	o.CPUs = 1
	m, err := newMachine(ctx, o, "-log", "-base")
	if err != nil {
		return sum, err
	}
	b, err := m.boot(ctx, "-operations", strconv.Itoa(recordedOperations), "-points", strconv.Itoa(points))
	if err != nil {
		return sum, err
	}
	defer b.guest.Kill()
	for {
		select {
		case e, ok := <-b.events:
			if ok {
				sum.apply(e)
				if e.Op == model.Phase && e.Key != "" {
					sum.Points++
					o.Log("point %3d: %s", sum.Points, e.Key)
				}
				continue
			}
			if b.err != nil {
				return sum, fmt.Errorf("at point %d: %w", sum.Points+1, b.failure())
			}
			sum.Took = time.Since(start)
			return sum, nil
		case <-ctx.Done():
			return sum, fmt.Errorf("replaying is too slow: %w\n%s", ctx.Err(), b.log.String())
		}
	}
}
