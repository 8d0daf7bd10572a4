package integration

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// panel is a panel of a dashboard, in a row or by itself.
type panel struct {
	Title   string
	Targets []struct{ Expr string }
	Panels  []panel
}

// TestDashboardOfADaemon has a Prometheus scrape a working daemon: every query of the dashboard has a result.
func TestDashboardOfADaemon(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	content, err := os.ReadFile("../docs/grafana/thinsnap.json")
	require.NoError(t, err)
	var dashboard panel
	require.NoError(t, json.Unmarshal(content, &dashboard))

	address := harnesstest.FreeAddress(t)
	d := harnesstest.StartThinsnapWith(t, tools, "dashboard", harness.Options{BaseSize: "64MiB", MetricsAddress: address})
	prometheus := harnesstest.StartPrometheus(t, tools, address)
	ctx, sn := t.Context(), d.Snapshotter(t)
	work := func() {
		_, err := sn.Prepare(ctx, "making", "")
		require.NoError(t, err)
		require.NoError(t, sn.Commit(ctx, "layer", "making"))
		_, err = sn.View(ctx, "look", "layer")
		require.NoError(t, err)
		_, err = sn.Stat(ctx, "nothing")
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		require.NoError(t, sn.Remove(ctx, "look"))
		require.NoError(t, sn.Remove(ctx, "layer"))
	}
	d.Run(t, "check")
	values := strings.NewReplacer("$__rate_interval", "1m", "$instance", ".*", "$job", ".*")
	var shows func(c *assert.CollectT, p panel) int
	shows = func(c *assert.CollectT, p panel) int {
		queries := len(p.Targets)
		for _, target := range p.Targets {
			assert.NotZero(c, prometheus.Count(t, values.Replace(target.Expr)), "%s: %s", p.Title, target.Expr)
		}
		for _, inner := range p.Panels {
			queries += shows(c, inner)
		}
		return queries
	}
	queries := 0
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		work()
		queries = shows(c, dashboard)
	}, time.Minute, time.Second)
	t.Logf("%d queries", queries)
	require.Greater(t, queries, 30)
}
