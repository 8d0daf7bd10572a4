package differ

import (
	"sync/atomic"

	"github.com/thinsnap/thinsnap/internal/diff"
)

// Stats count comparisons since the start of the daemon.
type Stats struct {
	Running    uint64 // at present
	Inodes     uint64 // layers made at level diff.Inodes
	Walked     uint64 // layers made at level diff.Walk
	Left       uint64 // failed, and left to containerd's next differ
	Failed     uint64 // while the layer was written, or because a snapshot may have lost writes
	Cancelled  uint64
	Mismatched uint64 // found by Options.Verify

	Changed uint64 // bytes in the runs of Pool.Delta
	Read    uint64 // bytes of files that were read for comparison
	Written uint64 // bytes of layers, before compression
}

type counters struct {
	running                                             atomic.Int64
	inodes, walked, left, failed, cancelled, mismatched atomic.Uint64
	changed, read, written                              atomic.Uint64
}

func (c *counters) of(level diff.Level) *atomic.Uint64 {
	if level == diff.Inodes {
		return &c.inodes
	}
	return &c.walked
}

// Stats returns the counters. They include the bytes of running comparisons.
func (d *Differ) Stats() Stats {
	c := &d.stats
	return Stats{
		Running: uint64(c.running.Load()), Inodes: c.inodes.Load(), Walked: c.walked.Load(),
		Left: c.left.Load(), Failed: c.failed.Load(), Cancelled: c.cancelled.Load(), Mismatched: c.mismatched.Load(),
		Changed: c.changed.Load(), Read: c.read.Load(), Written: c.written.Load(),
	}
}
