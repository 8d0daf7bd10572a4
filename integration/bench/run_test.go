package bench

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"
)

// benchMixed pulls an image while containers of another image start and end.
func benchMixed(s *suite) {
	s.unpackParents()
	const workers, limit = 16, 2 * time.Minute
	image := s.images.Layers16
	s.inTurn(1, func(t *target) {
		if t.name == Native {
			return // its copies would take minutes
		}
		s.forget(image)
		var (
			group  sync.WaitGroup
			begun  atomic.Int64
			pulled = make(chan struct{})
			failed = make(chan error, workers)
		)
		for range workers {
			group.Go(func() {
				for {
					select {
					case <-pulled:
						return
					default:
					}
					if err := s.container(t, func() { begun.Add(1) }); err != nil {
						failed <- err
						return
					}
				}
			})
		}
		start := time.Now()
		mark, err := s.pullWithin(limit, image, t.name)
		took := time.Since(start).Seconds()
		n := begun.Load()
		close(pulled)
		group.Wait()
		close(failed)
		require.NoError(s.b, err)
		require.NoError(s.b, <-failed)
		s.report.Add(s.group, "pull beside 16 workers that make containers", "s", t.name, took).Mark = mark
		s.report.Add(s.group, "containers begun meanwhile", "/s", t.name, float64(n)/took).Mark = mark
	})
	s.forget(image)
}

// pullWithin is pull with a limit; a pull that exceeds it gets a mark instead of an error.
func (s *suite) pullWithin(limit time.Duration, image, snapshotter string) (mark string, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, limit)
	defer cancel()
	err = s.pull(ctx, image, snapshotter)
	if ctx.Err() != nil {
		s.report.Note("‡ given up after %v", limit)
		return "‡", nil
	}
	return "", err
}

// container prepares a root file system, writes to it, calls begun, and removes it.
func (s *suite) container(t *target, begun func()) error {
	key := s.key()
	mounts, err := t.Prepare(s.ctx, key, t.parent, keep)
	if err != nil {
		return err
	}
	if err := s.write(mounts, 4096); err != nil {
		return err
	}
	begun()
	return t.Remove(s.ctx, key)
}

// benchRun measures the time to a container's first output.
func benchRun(s *suite) {
	s.unpackParents()
	s.inTurnSlow(5, 1, func(t *target) {
		cmd := s.containerd.NerdctlCommand(t.name, "run", "--rm", "--net", "none", s.images.Busybox, "echo", "here")
		stdout, err := cmd.StdoutPipe()
		require.NoError(s.b, err)
		s.time("nerdctl run, first output", t.name, func() error {
			if err := cmd.Start(); err != nil {
				return err
			}
			_, err := io.ReadFull(stdout, make([]byte, 1))
			return err
		})
		_, err = io.Copy(io.Discard, stdout)
		require.NoError(s.b, err)
		require.NoError(s.b, cmd.Wait())
		s.drain()
	})
}
