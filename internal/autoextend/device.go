package autoextend

import (
	"fmt"

	"github.com/docker/go-units"

	"github.com/thinsnap/thinsnap/devmapper/pool"
)

// device is the pool's data or metadata, with the limits of its growth in bytes.
type device struct {
	pool.Space
	kind       string
	blockBytes uint64
	low        uint64 // the low water mark: the device is short if at most this is free
	step       uint64 // the least extension
	largest    uint64 // the size for which the disk below it has space
	limit      uint64 // the configured or the kernel's maximum, or 0
	remedy     string // at the limit
}

func (d device) short(g pool.Growth) bool {
	return g.Threshold < 100 && (g.Short(d.Space, d.blockBytes) || d.Total-min(d.Used, d.Total) <= d.low)
}

// grown returns the size at which the device is no longer short of space. If it cannot grow that
// far, it returns the largest possible size and the reason.
func (d device) grown(g pool.Growth) (bytes uint64, stuck string) {
	largest := d.largest
	if d.limit > 0 {
		largest = min(largest, d.limit)
	}
	for d.short(g) {
		next := g.Next(d.Space, d.blockBytes, d.step, largest)
		if next == d.Total {
			return next, d.cannotGrow()
		}
		d.Total = next
	}
	return d.Total, ""
}

// cannotGrow explains why the device keeps its size.
func (d device) cannotGrow() string {
	reason := "no space left on the disk below the pool: free some there, or remove snapshots"
	if d.Disk == 0 { // no file
		reason = "no space left in the pool's volume group: add a disk to it, or remove snapshots"
	}
	if d.limit > 0 && d.Total+d.blockBytes > d.limit {
		reason = fmt.Sprintf("limited to %s: %s", units.BytesSize(float64(d.limit)), d.remedy)
	}
	return fmt.Sprintf("%s, and it cannot grow: %s", d.fill(), reason)
}

func (d device) fill() string {
	return fmt.Sprintf("%s of %s %s used", units.BytesSize(float64(d.Used)), units.BytesSize(float64(d.Total)), d.kind)
}
