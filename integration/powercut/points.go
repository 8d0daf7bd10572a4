package powercut

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/thinsnap/thinsnap/integration/powercut/model"
)

const (
	// recordedOperations is the number of operations in a record.
	recordedOperations = 60
	// recordLimit and pointLimit bound the time of recording and of a point.
	recordLimit, pointLimit = 5 * time.Minute, time.Minute
)

// Points records thinsnap's writes to a disk, and starts it on disks that have only a part of them, as after a power
// cut.
//
// The machine has one processor, so its disk has one queue. With more, two flushes can run at a time, and the second
// can end first. But the record puts the earlier writes at the end of the first flush. At the end of the second they
// would seem to be lost, and with them the operations that thinsnap acknowledges then.
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
