package keeper

import (
	"fmt"

	"github.com/docker/go-units"

	"github.com/thinsnap/thinsnap/devmapper/pool"
)

// device is one of the pool's two, and how large it may become, in bytes.
type device struct {
	pool.Space
	what       string
	blockBytes uint64
	low        uint64 // must be free at least
	largest    uint64 // with what is left below it
	limit      uint64 // 0 for none
}

func (d device) short(g pool.Growth) bool {
	return g.Threshold < 100 && (g.Short(d.Space, d.blockBytes) || d.Total-min(d.Used, d.Total) <= d.low)
}

// grown returns how large the device should be so that it is not short of space; or
// as large as it can be, and why that is not enough.
func (d device) grown(g pool.Growth) (bytes uint64, why string) {
	largest := d.largest
	if d.limit > 0 {
		largest = min(largest, d.limit)
	}
	for d.short(g) {
		next := g.Next(d.Space, d.blockBytes, largest)
		if next == d.Total {
			return next, d.cannot()
		}
		d.Total = next
	}
	return d.Total, ""
}

// cannot says why the device does not become larger than it is.
func (d device) cannot() string {
	reason := "there is no room for more below it: make room, or remove snapshots"
	if d.limit > 0 && d.Total+d.blockBytes > d.limit {
		reason = fmt.Sprintf("it may have %s at most: raise the limit, or remove snapshots", units.BytesSize(float64(d.limit)))
	}
	return fmt.Sprintf("%s, and it does not grow any more: %s", d.fill(), reason)
}

func (d device) fill() string {
	return fmt.Sprintf("of %s of %s %s are used", units.BytesSize(float64(d.Total)), d.what, units.BytesSize(float64(d.Used)))
}
