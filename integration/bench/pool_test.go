package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/integration/trace"
)

// pool is a snapshotter's pool, measured from outside.
type pool struct {
	*thin.Pool
	control  *devmapper.Control
	dataFile string
}

// commitTime is enough for the kernel to commit a pool's metadata, which it does every second.
const commitTime = 1500 * time.Millisecond

// space returns the used space of the pool, and that of its data file on its file system, in MiB; file is 0 for a pool
// by LVM.
func (p *pool) space() (used, file float64, err error) {
	status, err := p.Status(false)
	if err != nil {
		return 0, 0, err
	}
	unix.Sync()
	var st unix.Stat_t
	if p.dataFile != "" {
		if err := unix.Stat(p.dataFile, &st); err != nil {
			return 0, 0, err
		}
	}
	const blocksPerMiB = mib / (64 << 10)
	return float64(status.DataUsed) / blocksPerMiB, float64(st.Blocks) * 512 / mib, nil
}

// written returns the amount written to the pool's two devices so far, in KiB.
func (p *pool) written() (float64, error) {
	devices, err := p.control.Deps(p.Name())
	if err != nil {
		return 0, err
	}
	sectors := 0.0
	for _, device := range devices {
		stat, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(device), unix.Minor(device)))
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseFloat(strings.Fields(string(stat))[6], 64)
		if err != nil {
			return 0, err
		}
		sectors += n
	}
	return sectors / 2, nil
}

// benchBytes measures the space that a new pool allocates and frees.
func benchBytes(s *suite) {
	const containers, slowContainers = 100, 10
	for _, t := range s.targets {
		if t.pool == nil {
			continue
		}
		at := func(when string, scale func(value float64, row string) float64) {
			time.Sleep(commitTime)
			used, file, err := t.pool.space()
			require.NoError(s.b, err)
			for row, value := range map[string]float64{"pool": used, "data file": file} {
				s.report.Add(s.group, row+", "+when, "MiB", t.name, scale(value, row))
			}
		}
		seen := make(map[string]float64)
		exact := func(value float64, row string) float64 { seen[row] = value; return value }
		at("unused", exact)
		s.prepare(t, "")
		at("an empty first layer", exact)
		parent := s.unpack(t, s.images.Busybox)
		at("and an image of 2 MiB", exact)
		n := containers
		if t.slow {
			n = slowContainers
		}
		for range n {
			s.prepare(t, parent)
		}
		at("and 100 containers of it", func(value float64, row string) float64 {
			return seen[row] + (value-seen[row])*containers/float64(n)
		})
		mark := s.scaled(n, containers)
		for _, row := range []string{"pool", "data file"} {
			s.report.Add(s.group, row+", and 100 containers of it", "MiB", t.name).Mark = mark
		}
		s.end()
		s.forget(s.images.Busybox)
		at("all removed", exact)
	}
}

// benchCosts counts costs that are the same on every machine.
func benchCosts(s *suite) {
	s.unpackParents()
	database := s.containerd.Root + "/io.containerd.metadata.v1.bolt/meta.db"
	s.report.Note("costs include the snapshotter, the programs that it executes and its background work, but not " +
		"containerd's own database. Transactions are bbolt's; each has two of the syncs.")
	for _, t := range s.targets {
		if t.pool == nil {
			continue
		}
		child, mounts := s.prepare(t, t.parent)
		require.NoError(s.b, s.write(mounts, mib))
		removed, _ := s.prepare(t, t.parent)
		for _, operation := range []struct {
			name string
			run  func() error
		}{
			{"first Prepare", func() error { _, err := t.Prepare(s.ctx, s.later(t, s.key()), "", keep); return err }},
			{"Prepare of a child", func() error { _, err := t.Prepare(s.ctx, s.later(t, s.key()), t.parent, keep); return err }},
			{"View", func() error { _, err := t.View(s.ctx, s.later(t, s.key()), t.parent, keep); return err }},
			{"Mounts", func() error { _, err := t.Mounts(s.ctx, removed); return err }},
			{"Commit of 1 MiB", func() error { return t.Commit(s.ctx, s.later(t, s.key()), child, keep) }},
			{"Remove", func() error {
				if err := t.Remove(s.ctx, removed); err != nil {
					return err
				}
				return s.awaitDrained()
			}},
		} {
			time.Sleep(commitTime)
			trace.AwaitIdle(s.b, t.pid)
			before, err := t.pool.written()
			require.NoError(s.b, err)
			cost := trace.Count(s.b, t.pid, operation.run, database)
			time.Sleep(commitTime)
			after, err := t.pool.written()
			require.NoError(s.b, err)
			for _, part := range []struct {
				name, unit string
				value      float64
			}{
				{"programs executed", "", float64(cost.Programs)},
				{"transactions", "", float64(cost.Transactions)},
				{"fdatasync and fsync", "", float64(cost.Syncs)},
				{"device-mapper ioctls", "", float64(cost.Ioctls)},
				{"written to the pool", "KiB", after - before},
			} {
				s.report.Add(s.group, operation.name+": "+part.name, part.unit, t.name, part.value)
			}
		}
	}
}
