package bench

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
)

// benchMany measures thinsnap alone, on its own pool and socket, with few snapshots and with many.
func benchMany(s *suite) {
	if !slices.ContainsFunc(s.targets, func(t *target) bool { return t.name == Thinsnap }) {
		return
	}
	daemon := harnesstest.StartThinsnapWith(s.b, s.tools, "bench-many", s.options("many"))
	sn := daemon.Snapshotter(s.b)
	_, err := sn.Prepare(s.ctx, "first", "")
	require.NoError(s.b, err)
	require.NoError(s.b, sn.Commit(s.ctx, "layer", "first"))
	prepare := func() error {
		_, err := sn.Prepare(s.ctx, s.key(), "layer")
		return err
	}
	had := 1
	for _, n := range []int{10, 1000} {
		require.NoError(s.b, share(n-had, 8, prepare))
		had = n
		row := func(what string) string { return fmt.Sprintf("%s, snapshots: %d", what, n) }
		for range 3 {
			daemon.Stop(s.b)
			s.time(row("start to first answer"), Thinsnap, func() error {
				daemon.Start(s.b)
				_, err := sn.Stat(s.ctx, "layer")
				return err
			})
		}
		s.report.Add(s.group, row("memory (VmRSS)"), "MiB", Thinsnap, resident(s, daemon.PID()))
		for range rounds {
			s.time(row("Prepare"), Thinsnap, prepare)
		}
		had += rounds
		s.time(row("Walk"), Thinsnap, func() error {
			return sn.Walk(s.ctx, func(context.Context, snapshots.Info) error { return nil })
		})
	}
}

// resident returns a process's resident memory in MiB, shortly after it became idle.
func resident(s *suite, pid int) float64 {
	time.Sleep(pause)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(s.b, err)
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			require.NoError(s.b, err)
			return kib / 1024
		}
	}
	require.FailNow(s.b, "no VmRSS")
	return 0
}
