package bench

import (
	"os"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/accounting"
	"github.com/thinsnap/thinsnap/integration/trace"
)

// slowUsageTimes and slowCallTimes are for slow snapshotters.
const (
	usageRounds                = 3
	usageTimes, slowUsageTimes = 50, 5 // operations measured together
	callTimes, slowCallTimes   = 10, 2 // operations traced together
	idleTimes                  = 5
	idleTime                   = 3 * time.Second
)

type operation struct {
	name string
	// ready prepares n operations, uncounted, and returns their keys.
	ready func(t *target, n int) []string
	// run performs the operation with each of the keys.
	run func(t *target, keys []string) error
}

// operations returns operations through containerd. Those that leave garbage include its collection.
func (s *suite) operations() []operation {
	child := func(t *target) string { return t.parent }
	first := func(*target) string { return "" }
	return []operation{
		{"Prepare of a child", s.newKeys, each(func(t *target, key string) error {
			_, err := t.Prepare(s.ctx, s.later(t, key), t.parent, keep)
			return err
		})},
		{"View", s.newKeys, each(func(t *target, key string) error {
			_, err := t.View(s.ctx, s.later(t, key), t.parent, keep)
			return err
		})},
		{"Mounts", s.children, each(func(t *target, key string) error {
			_, err := t.Mounts(s.ctx, key)
			return err
		})},
		{"Commit of 1 MiB", s.written(child), each(s.commit)},
		{"Commit of a first layer of 1 MiB", s.written(first), each(s.commit)},
		{"Remove", s.children, s.drainedAfter(each(func(t *target, key string) error { return t.Remove(s.ctx, key) }))},
		{"Prepare and Remove, 1 worker", s.newKeys, s.drainedAfter(each(s.pair))},
		{"Prepare and Remove, 8 workers", s.newKeys, s.drainedAfter(func(t *target, keys []string) error {
			next := make(chan string, len(keys))
			for _, key := range keys {
				next <- key
			}
			return share(len(keys), 8, func() error { return s.pair(t, <-next) })
		})},
	}
}

func (s *suite) newKeys(_ *target, n int) (keys []string) {
	for range n {
		keys = append(keys, s.key())
	}
	return keys
}

func (s *suite) children(t *target, n int) (keys []string) {
	for range n {
		key, _ := s.prepare(t, t.parent)
		keys = append(keys, key)
	}
	return keys
}

func (s *suite) written(parent func(t *target) string) func(t *target, n int) []string {
	return func(t *target, n int) (keys []string) {
		for range n {
			key, mounts := s.prepare(t, parent(t))
			require.NoError(s.b, s.write(mounts, mib))
			keys = append(keys, key)
		}
		return keys
	}
}

func (s *suite) commit(t *target, key string) error {
	return t.Commit(s.ctx, s.later(t, s.key()), key, keep)
}

func (s *suite) pair(t *target, key string) error {
	if _, err := t.Prepare(s.ctx, key, t.parent, keep); err != nil {
		return err
	}
	return t.Remove(s.ctx, key)
}

func each(op func(t *target, key string) error) func(t *target, keys []string) error {
	return func(t *target, keys []string) error {
		for _, key := range keys {
			if err := op(t, key); err != nil {
				return err
			}
		}
		return nil
	}
}

func (s *suite) drainedAfter(run func(t *target, keys []string) error) func(t *target, keys []string) error {
	return func(t *target, keys []string) error {
		if err := run(t, keys); err != nil {
			return err
		}
		return s.awaitDrained()
	}
}

// benchUsage measures each operation's costs in the client, containerd, a proxy and the kernel threads.
func benchUsage(s *suite) {
	s.unpackParents()
	s.report.Note("CPU and context switches are averages of many operations, with their background work. The usage of an " +
		"idle second is a case of its own, and is subtracted from the others. The kernel's work in a system call is in the " +
		"process's system time. The whole machine includes interrupts, the registry and the meter.")
	if s.userMode {
		s.report.Note("A user-mode kernel counts CPU time by a timer of 10 ms, all of it as user time, and counts the time that the " +
			"machine's other programs use, too.")
	}
	idle := make(map[*target]accounting.Usage)
	s.inTurnSlow(1, 1, func(t *target) {
		if t.name == Native {
			return
		}
		idle[t] = s.idle(t)
		s.report.AddUsage("usage, idle for 1 s", t.name, time.Second, idle[t].Per(int(idleTime/time.Second)))
	})
	for _, op := range s.operations() {
		s.inTurn(usageRounds, func(t *target) {
			if t.name == Native {
				return
			}
			n := t.times(usageTimes, slowUsageTimes)
			keys := op.ready(t, n)
			s.drain()
			trace.AwaitIdle(s.b, t.pid)
			var took time.Duration
			used := s.meter(t, func() error {
				start := time.Now()
				err := op.run(t, keys)
				took = time.Since(start)
				trace.AwaitIdle(s.b, t.pid)
				return err
			})
			s.report.AddUsage("usage, "+op.name, t.name, took/time.Duration(n), used.Less(idle[t]).Per(n))
			s.end()
		})
	}
	image := s.images.Layers16
	s.inTurnSlow(usageRounds, usageRounds, func(t *target) {
		if t.name == Native {
			return
		}
		s.forget(image)
		var took time.Duration
		used := s.meter(t, func() error {
			start := time.Now()
			err := s.pull(s.ctx, image, t.name)
			took = time.Since(start)
			trace.AwaitIdle(s.b, t.pid)
			return err
		})
		s.report.AddUsage("usage, pull of 16 layers", t.name, took, used.Less(idle[t]))
	})
	s.forget(image)
}

// idle measures the usage without requests, and returns the quietest of several times, to leave out garbage
// collections.
func (s *suite) idle(t *target) (quietest accounting.Usage) {
	trace.AwaitIdle(s.b, t.pid)
	for i := range idleTimes {
		used := s.meter(t, func() error { time.Sleep(idleTime); return nil })
		if i == 0 || used.CPU() < quietest.CPU() {
			quietest = used
		}
	}
	return quietest
}

// meter measures the usage while op runs.
func (s *suite) meter(t *target, op func() error) accounting.Usage {
	pids := map[string]int{client: os.Getpid(), containerd: s.containerd.PID()}
	if t.pid != s.containerd.PID() {
		pids[proxyProcess] = t.pid
	}
	m, err := accounting.Start(pids)
	require.NoError(s.b, err)
	require.NoError(s.b, op())
	used, err := m.Read()
	require.NoError(s.b, err)
	return used
}

// benchCalls counts the system calls of each operation, separate from all timing: strace slows a process down.
func benchCalls(s *suite) {
	s.unpackParents()
	s.report.Note("System calls are counted with strace, which slows a process down, so that it makes more calls of %s. Without a "+
		"vDSO, reading the clock is a system call. .reports/bench.json has the calls by name.", goCalls)
	for _, op := range s.operations() {
		s.inTurn(1, func(t *target) {
			if t.name == Native {
				return
			}
			n := t.times(callTimes, slowCallTimes)
			keys := op.ready(t, n)
			s.drain()
			trace.AwaitIdle(s.b, t.pid)
			run := func() error { return op.run(t, keys) }
			own := func() error {
				if t.pid == s.containerd.PID() {
					return run()
				}
				s.report.AddCalls("usage, "+op.name, t.name, proxyProcess, n, trace.Calls(s.b, t.pid, run))
				return nil
			}
			s.report.AddCalls("usage, "+op.name, t.name, containerd, n, trace.Calls(s.b, s.containerd.PID(), own))
			s.end()
		})
	}
}

func (t *target) times(quick, slow int) int {
	if t.slow {
		return slow
	}
	return quick
}
