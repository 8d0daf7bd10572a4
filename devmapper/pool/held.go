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
	// steadyReadings is the number of equal readings after which writers count as waiting.
	// maxReadings limits the readings.
	steadyReadings, maxReadings = 10, 50
)

// awaitHeldWrites waits, for at most a second, until the writers of a pool without space wait in
// the kernel. Otherwise a suspend can wait for a write that is on its way, until that fails after
// no_space_timeout: process_cell_read_only ignores requeue_mode (drivers/md/dm-thin.c).
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
		// Like the writes on their way, this waits for a running commit.
		status, err := p.thin.Status(true)
		return writesInFlight(volumes), status.Mode == thin.ModeOutOfDataSpace, err
	})
}

// awaitSteady returns when steadyReadings readings were equal, after maxReadings readings, or when the pool
// is no longer full.
func awaitSteady(read func() (writes uint64, full bool, err error)) error {
	last, full, err := read()
	for readings, same := 0, 0; err == nil && full && readings < maxReadings && same < steadyReadings; readings++ {
		time.Sleep(heldInterval)
		var now uint64
		now, full, err = read()
		if same++; now != last {
			last, same = now, 0
		}
	}
	return err
}

// writesInFlight returns the number of unfinished writes of the block devices whose sysfs
// directories are in dir. A removed device has none.
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
