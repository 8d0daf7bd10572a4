package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest/dmpool"
)

// Measurements of the floor that rows of other cases use.
const (
	floorPrepare  = "a snapshot made and activated"
	floorActivate = "a volume activated"
	floorRemove   = "a volume deactivated and deleted"
)

// floorPairs returns the row's name for a number of workers.
func floorPairs(workers int) string { return fmt.Sprintf("made and removed, workers: %d", workers) }

// fromFloor fills the floor's column of a row, if the floor was measured.
func (s *suite) fromFloor(row, unit, what string) {
	if values := s.floor[what]; len(values) > 0 {
		s.report.Add(s.group, row, unit, Floor, values...)
	}
}

// rawPool is an unused pool, with volume 0 as the origin of snapshots.
type rawPool struct {
	*dmpool.Pool
	next atomic.Uint32
}

type step struct {
	name string
	run  func() error
}

// steps are all operations of the kernel in the life of a snapshot.
func (p *rawPool) steps() []step {
	id := thin.ID(p.next.Add(1))
	name := fmt.Sprintf("%s-%d", p.Name(), id)
	table := []devmapper.Target{thin.Target(p.Number, id, baseBytes/512)}
	message := func(format string, args ...any) error {
		_, err := p.Control.Message(p.Name(), 0, fmt.Sprintf(format, args...))
		return err
	}
	return []step{
		{"create_snap", func() error { return message("create_snap %d 0", id) }},
		{"DM_DEV_CREATE", func() error { _, err := p.Control.Create(name, ""); return err }},
		{"DM_TABLE_LOAD", func() error { _, err := p.Control.Load(name, table, false); return err }},
		{"resume", func() error { _, err := p.Control.Resume(name); return err }},
		{"DM_DEV_REMOVE", func() error { _, err := p.Control.Remove(name, devmapper.RemoveOptions{}); return err }},
		{"delete", func() error { return message("delete %d", id) }},
	}
}

// benchFloor measures the kernel's part alone: the ioctls of a snapshot, in sequence and concurrently, and the sync of
// a database.
func benchFloor(s *suite) {
	pool := &rawPool{Pool: dmpool.NewWith(s.b, dmpool.Options{Dir: s.dir("floor"), DataBytes: 1 << 30, MetadataBytes: 64 * mib})}
	require.NoError(s.b, pool.CreateThin(0))
	s.floor = make(map[string][]float64)
	parts := map[string][]string{
		floorPrepare:  {"create_snap", "DM_DEV_CREATE", "DM_TABLE_LOAD", "resume"},
		floorActivate: {"DM_DEV_CREATE", "DM_TABLE_LOAD", "resume"},
		floorRemove:   {"DM_DEV_REMOVE", "delete"},
	}
	for range 30 {
		took := make(map[string]float64)
		for _, step := range pool.steps() {
			start := time.Now()
			require.NoError(s.b, step.run(), step.name)
			took[step.name] = milliseconds(time.Since(start))
			s.report.Add(s.group, step.name, "ms", Floor, took[step.name])
		}
		for what, names := range parts {
			sum := 0.0
			for _, name := range names {
				sum += took[name]
			}
			s.floor[what] = append(s.floor[what], sum)
		}
	}
	s.fromFloor(floorPrepare, "ms", floorPrepare)
	s.fromFloor(floorRemove, "ms", floorRemove)
	for _, workers := range []int{1, 8, 16, 64} {
		pairs := max(30, 2*workers)
		for range 3 {
			start := time.Now()
			require.NoError(s.b, share(pairs, workers, func() error {
				for _, step := range pool.steps() {
					if err := step.run(); err != nil {
						return fmt.Errorf("%s: %w", step.name, err)
					}
				}
				return nil
			}))
			s.floor[floorPairs(workers)] = append(s.floor[floorPairs(workers)], float64(pairs)/time.Since(start).Seconds())
		}
		s.fromFloor(floorPairs(workers), "/s", floorPairs(workers))
	}
	s.syncs()
}

// syncs measures the fdatasync of an overwritten page, of which a database's transaction has two.
func (s *suite) syncs() {
	file, err := os.Create(filepath.Join(s.disk, "sync"))
	require.NoError(s.b, err)
	defer file.Close()
	page := make([]byte, 4096)
	for range 51 {
		start := time.Now()
		_, err := file.WriteAt(page, 0)
		require.NoError(s.b, err)
		require.NoError(s.b, unix.Fdatasync(int(file.Fd())))
		s.report.Add(s.group, "fdatasync of 4 KiB", "ms", Floor, milliseconds(time.Since(start)))
	}
}

// share has workers call op n times in total, concurrently, and returns the first error.
func share(n, workers int, op func() error) error {
	var group errgroup.Group
	group.SetLimit(workers)
	for range n {
		group.Go(op)
	}
	return group.Wait()
}
