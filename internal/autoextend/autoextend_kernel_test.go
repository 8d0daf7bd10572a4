package autoextend_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/autoextend"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

const mib = 1 << 20

// started creates a pool, and runs an Extender for it until the test ends.
func started(t *testing.T, data, metadata uint64, growth pool.Growth) (*pool.Pool, *autoextend.Extender) {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	dir := t.TempDir()
	spec := pool.LoopSpec{
		ID: rand.Text(), Name: "autoextendtest", BlockBytes: 64 << 10, LowWaterPercent: 100 - growth.Threshold,
		DataFile: filepath.Join(dir, "data"), MetadataFile: filepath.Join(dir, "metadata"),
	}
	require.NoError(t, spec.CreateFiles(t.Context(), data, metadata))
	control, err := devmapper.Open()
	require.NoError(t, err)
	p, err := spec.Open(t.Context(), control, false)
	require.NoError(t, err)
	events, err := control.Events()
	require.NoError(t, err)
	e := autoextend.New(spec.Name, p, growth)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx, events) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
		require.NoError(t, events.Close())
		require.NoError(t, p.Close(context.Background()))
		require.NoError(t, control.Close())
	})
	return p, e
}

// TestKernelPoolGrowsUnderAWriter writes five times the pool's initial size as fast as possible.
func TestKernelPoolGrowsUnderAWriter(t *testing.T) {
	p, e := started(t, 64*mib, 4*mib, pool.Growth{Threshold: 80, Percent: 50, DataLimit: 512 * mib})
	require.NoError(t, p.CreateThin(t.Context(), 1))
	vol, err := p.Activate(t.Context(), 1, 1024*mib, false)
	require.NoError(t, err)
	f, err := os.OpenFile(vol.Path, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	piece := bytes.Repeat([]byte("x"), 4*mib)
	for range 320 / 4 {
		_, err := f.Write(piece)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
	}
	status, err := p.Status(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 320*mib, status.Data.Used)
	require.Equal(t, thin.ModeReadWrite, status.Mode)
	report := e.Report()
	t.Logf("%+v, %d MiB", report, status.Data.Total/mib)
	require.GreaterOrEqual(t, report.DataExtensions, uint64(3))
	require.Zero(t, report.MetadataExtensions)
	require.Empty(t, report.Stuck)
}

// TestKernelMetadataGrows creates volumes until the metadata has grown twice. The kernel raises one
// event, with a quarter left. The test then waits for the Extender, because a fast machine could
// use up that quarter before the Extender's next read.
func TestKernelMetadataGrows(t *testing.T) {
	p, e := started(t, 64*mib, 4*mib, pool.Growth{Threshold: 80, Percent: 20})
	control, err := devmapper.Open()
	require.NoError(t, err)
	defer control.Close()
	for id := thin.ID(1); e.Report().MetadataExtensions < 2; id++ {
		require.Less(t, id, thin.ID(5000))
		seen := e.Report().Events
		before, err := control.Info("autoextendtest")
		require.NoError(t, err)
		require.NoError(t, p.CreateThin(t.Context(), id))
		after, err := control.Info("autoextendtest")
		require.NoError(t, err)
		if after.EventNr != before.EventNr {
			require.Eventually(t, func() bool { return e.Report().Events > seen }, time.Minute, time.Millisecond)
		}
	}
	status, err := p.Status(t.Context())
	require.NoError(t, err)
	require.Greater(t, status.Metadata.Total, uint64(4*mib))
	require.Equal(t, thin.ModeReadWrite, status.Mode)
	require.False(t, status.NeedsCheck)
	require.EqualValues(t, 64*mib, status.Data.Total)
}
