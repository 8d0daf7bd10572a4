package pool

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/thinsnap/thinsnap/devmapper/thin"
)

const (
	heldInterval = 20 * time.Millisecond
	// heldLooks is the number of looks after which writers count as waiting, and heldMost the most.
	heldLooks, heldMost = 10, 50
)

// awaitHeldWrites waits, for a second at most, until the writers of a pool that has no space wait. It
// is called before such a pool is suspended, to be made larger.
//
// A write that is on its way into the kernel at that moment may be kept for a resume instead of queued
// again, and the suspend waits for it, until the kernel fails it after no_space_timeout: unlike
// process_cell, process_cell_read_only does not look at requeue_mode (drivers/md/dm-thin.c).
func (p *Pool) awaitHeldWrites() error {
	status, err := p.thin.Status(true)
	if err != nil || status.Mode != thin.ModeOutOfDataSpace {
		return err
	}
	live, err := p.live()
	if err != nil {
		return err
	}
	volumes := filepath.Join("/sys/dev/block", live.device.Number(), "holders")
	return awaitSteady(func() (writes uint64, full bool, err error) {
		// While the pool commits, writes on their way wait for its metadata, and so does this.
		status, err := p.thin.Status(true)
		return writesInFlight(volumes), status.Mode == thin.ModeOutOfDataSpace, err
	})
}

// awaitSteady returns when read has returned the same number of writes some times, or too often
// another, or when the pool is no longer full.
func awaitSteady(read func() (writes uint64, full bool, err error)) error {
	last, full, err := read()
	for looks, same := 0, 0; err == nil && full && looks < heldMost && same < heldLooks; looks++ {
		time.Sleep(heldInterval)
		var now uint64
		now, full, err = read()
		if same++; now != last {
			last, same = now, 0
		}
	}
	return err
}

// writesInFlight returns the number of writes that the block devices, whose sysfs directories are in
// dir, have begun and not ended. A device that has gone has none.
func writesInFlight(dir string) (sum uint64) {
	devices, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, d := range devices {
		var reads, writes uint64
		b, err := os.ReadFile(filepath.Join(dir, d.Name(), "inflight"))
		if err != nil {
			continue
		}
		if _, err := fmt.Sscan(string(b), &reads, &writes); err == nil {
			sum += writes
		}
	}
	return sum
}
