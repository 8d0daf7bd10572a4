// Package failpoint kills the daemon at each failpoint that an operation passes, and tests the next start. The program
// itself reports the failpoints that it passes.
package failpoint

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/fsck"
)

// TestFailpoints kills each operation at each failpoint that it passes if dmtest.Thorough, else only where few others
// were killed. It also fails for a failpoint that no operation passes: then an operation is missing here.
func TestFailpoints(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	c := &coverage{crashes: make(map[string]int)}
	t.Run("operations", func(t *testing.T) {
		for _, op := range allOperations() {
			t.Run(op.name, func(t *testing.T) {
				t.Parallel()
				op.test(t, c)
			})
		}
		t.Run("first start", func(t *testing.T) {
			t.Parallel()
			testFirstStart(t, c)
		})
	})
	if t.Failed() || !c.allTested() {
		return
	}
	var never []string
	for _, name := range c.names {
		if c.crashes[name] == 0 {
			never = append(never, name)
		}
	}
	require.Empty(t, never, "no operation passes these failpoints")
	t.Logf("%d failpoints, %d crashes, of which %d were not reached again", len(c.names), c.total, c.missed)
}

func allOperations() []operation { return append(operations(), poolOperations()...) }

// coverage counts the crashes.
type coverage struct {
	mu            sync.Mutex
	names         []string
	crashes       map[string]int
	operations    int
	total, missed int
}

// allTested reports whether all operations were tested, and not only those selected by -run.
func (c *coverage) allTested() bool { return c.operations == len(allOperations())+1 }

// begin records an operation, and the existing failpoints.
func (c *coverage) begin(names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names = names
	c.operations++
}

// enough is the number of operations that crash at a failpoint, unless dmtest.Thorough.
const enough = 2

// covered reports whether enough operations have crashed at a failpoint.
func (c *coverage) covered(failpoint string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.crashes[failpoint] >= enough && !dmtest.Thorough()
}

func (c *coverage) count(failpoint string, reached bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !reached {
		c.missed++
		return
	}
	c.total++
	c.crashes[failpoint]++
}

// test crashes the daemon at each failpoint that the operation passes.
func (op operation) test(t *testing.T, c *coverage) {
	if op.disk > 0 {
		file := filepath.Join(t.TempDir(), "disk")
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		require.NoError(t, os.Truncate(file, op.disk))
		op.options.Root = filepath.Join(harnesstest.FormatDisk(t, file), "root")
	}
	s := newStand(t, op.name, op.options)
	s.finds = op.finds
	s.start(t)
	c.begin(s.names)
	number := 0
	part := func(name string, f func(r *trial)) {
		t.Run(name, func(t *testing.T) {
			number++
			r := newTrial(t, s, number)
			f(r)
			r.removeAll()
			r.checkTidy()
		})
	}
	var passed []string
	part("set up", func(r *trial) {
		fill := func(r *trial) {
			require.NoError(r, r.prepare(first, ""))
			r.write(first)
			require.NoError(r, r.commit(layer, first))
		}
		fill(r)
		if len(r.Clients) > 0 {
			r.asDefault(fill)
		}
	})
	part("nowhere", func(r *trial) {
		op.begin(r, tell, s.names)
		passed = s.passed(r.T, func() {
			require.NoError(r, op.do(r))
			if r.running() {
				r.awaitIdle()
			}
		})
		r.revive()
		s.arm(r.T, "off", s.names...)
		op.requireResult(r)
	})
	require.NotEmpty(t, passed)
	require.Subset(t, passed, op.only)
	t.Logf("passes %v", passed)
	for _, failpoint := range passed {
		if op.only != nil && !slices.Contains(op.only, failpoint) || c.covered(failpoint) {
			continue
		}
		if t.Failed() {
			return
		}
		part(failpoint, func(r *trial) { c.count(failpoint, op.crash(r, failpoint)) })
	}
	r := newTrial(t, s, 0)
	r.requireLayerFiles(layer, first)
	r.must(func(ctx context.Context) error { return fsck.Served(ctx, r.sn) })
	require.NoError(t, r.remove(layer))
	if len(r.Clients) > 0 {
		r.asDefault(func(r *trial) { require.NoError(r, r.remove(layer)) })
	}
	require.NoError(t, r.cleanup())
	r.checkEmpty()
	s.Stop(t)
}

// begin sets up the operation, and arms failpoints.
func (op operation) begin(r *trial, action string, failpoints []string) {
	r.Helper()
	if op.setup != nil {
		op.setup(r)
	}
	if op.starts {
		r.env = []string{variable(action, failpoints...)}
		return
	}
	r.awaitIdle()
	r.arm(r.T, action, failpoints...)
}

func (op operation) requireResult(r *trial) {
	r.Helper()
	if op.holds != nil {
		op.holds(r)
	}
	if len(r.Clients) > 0 {
		r.asDefault(func(r *trial) {
			require.Equal(r, []string{layer}, r.keys(), "the default key space is unchanged")
			r.requireLayerFiles(layer, first)
		})
	}
}

// crash runs the operation with one failpoint armed. It reports whether the failpoint was reached: the
// daemon's background work may differ from run to run.
func (op operation) crash(r *trial, failpoint string) bool {
	r.Helper()
	op.begin(r, crash, []string{failpoint})
	began := time.Now()
	err := op.do(r)
	if err == nil && r.running() {
		// The call waits for background work, in which the daemon may crash; its error does not matter.
		_ = r.cleanup()
	}
	reached := r.crashed()
	r.env = nil
	if !reached {
		r.Logf("not reached in %s", time.Since(began))
		r.disarm(r.T, failpoint)
		op.requireResult(r)
		return false
	}
	r.checkStopped(r.T)
	r.revive()
	require.NoError(r, r.cleanup())
	r.check()
	if err == nil {
		op.requireResult(r)
	}
	require.NoError(r, op.do(r), "again, after: %v", err)
	r.revive()
	op.requireResult(r)
	return true
}

// revive starts the daemon again if it has ended.
func (r *trial) revive() {
	r.Helper()
	if !r.running() {
		r.start(r.T)
		r.connect()
	}
}
