package bench

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// rounds is the number of repetitions of an operation for quick snapshotters, pausedRounds if it follows a pause.
const rounds, pausedRounds = 20, 8

func benchFirst(s *suite) {
	const row = "Prepare without a parent"
	s.fromFloor(row, "ms", floorPrepare)
	s.inTurn(rounds, func(t *target) {
		s.time(row, t.name, func() error {
			_, err := t.Prepare(s.ctx, s.later(t, s.key()), "", keep)
			return err
		})
	})
}

func benchChild(s *suite) {
	s.unpackParents()
	child := func(t *target, row string) {
		s.time(row, t.name, func() error {
			_, err := t.Prepare(s.ctx, s.later(t, s.key()), t.parent, keep)
			return err
		})
	}
	const paused, serial = "Prepare of a child, after 1 s", "Prepare of a child, back to back"
	s.fromFloor(paused, "ms", floorPrepare)
	s.inTurn(pausedRounds, func(t *target) {
		rest()
		child(t, paused)
	})
	s.fromFloor(serial, "ms", floorPrepare)
	s.inTurn(4, func(t *target) {
		for range 10 {
			child(t, serial)
		}
	})
}

// rest waits until the machine is idle. Without the sync, the kernel would write back the previous snapshotter's files
// during the next one's operation.
func rest() {
	unix.Sync()
	time.Sleep(pause)
}

func benchView(s *suite) {
	s.unpackParents()
	for _, way := range []struct {
		row    string
		rounds int
		paused bool
	}{
		{"View of a layer, 1 s after its Commit", pausedRounds, true},
		{"View of a layer, right after its Commit", rounds, false},
	} {
		s.fromFloor(way.row, "ms", floorActivate)
		s.inTurn(way.rounds, func(t *target) {
			layer := s.layer(t, t.parent)
			if way.paused {
				rest()
			}
			s.time(way.row, t.name, func() error {
				_, err := t.View(s.ctx, s.later(t, s.key()), layer, keep)
				return err
			})
		})
	}
}

func benchMounts(s *suite) {
	s.unpackParents()
	keys := make(map[*target]string)
	for _, t := range s.targets {
		keys[t], _ = s.prepare(t, t.parent)
	}
	s.inTurn(rounds, func(t *target) {
		s.time("Mounts", t.name, func() error {
			_, err := t.Mounts(s.ctx, keys[t])
			return err
		})
	})
}

func benchCommit(s *suite) {
	s.unpackParents()
	s.inTurn(rounds, func(t *target) {
		key, mounts := s.prepare(t, t.parent)
		require.NoError(s.b, s.write(mounts, mib))
		s.time("Commit of 1 MiB", t.name, func() error {
			return t.Commit(s.ctx, s.later(t, s.key()), key, keep)
		})
	})
}

// write mounts a snapshot, writes a new file of that many bytes and unmounts the snapshot.
func (s *suite) write(mounts []mount.Mount, bytes int) error {
	content := make([]byte, bytes)
	_, _ = rand.Read(content) // never fails
	return mount.WithTempMount(s.ctx, mounts, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "written"), content, 0o644)
	})
}

func benchRemove(s *suite) {
	s.unpackParents()
	const answered, drained = "Remove", "Remove, until it is done"
	s.report.Note("containerd answers a Remove by itself; the snapshotter removes the snapshot when containerd collects garbage. "+
		"\"done\" and \"drained\" include that, and the background work of %s.", Thinsnap)
	s.fromFloor(drained, "ms", floorRemove)
	s.inTurn(rounds, func(t *target) {
		key, _ := s.prepare(t, t.parent)
		s.drain()
		start := time.Now()
		s.time(answered, t.name, func() error { return t.Remove(s.ctx, key) })
		s.drain()
		s.report.Add(s.group, drained, "ms", t.name, milliseconds(time.Since(start)))
	})
}
