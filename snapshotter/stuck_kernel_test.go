package snapshotter_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/faulty"
)

// TestKernelStuckOperations: many clients retry on a disk that does not answer.
func TestKernelStuckOperations(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	disk := faulty.New(t, 64<<20)
	dir := disk.Mount(t, false)
	zeroFile(t, filepath.Join(dir, "data"), 48<<20)
	ctx, h := newFaultHost(t, places{data: dir}, faultConfig(), 48<<20, 4<<20)
	h.layer(ctx, t, "other", "", "other", 1<<20)
	require.NoError(t, h.prepare(ctx, "running", "other"))
	running := h.mount(ctx, t, "running")
	write(t, running, "file", strings.Repeat("r", 4<<20))
	disk.Hang(t)
	defer disk.Heal(t)

	var refused atomic.Int32
	// On a slow machine, few operations of a round are in the kernel when its time is over.
	for round := 0; refused.Load() < 100; round++ {
		require.Less(t, round, 100)
		limited, cancel := context.WithTimeout(ctx, quick/100)
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				err := h.prepare(limited, fmt.Sprintf("try-%d-%d", round, i), "other")
				assert.Error(t, err) //nolint:testifylint // not in the test's goroutine
				if errdefs.IsUnavailable(err) {
					assert.ErrorContains(t, err, "operations wait for the kernel")
					refused.Add(1)
				}
			})
		}
		all.Wait()
		cancel()
	}
	_, err := h.Stat(ctx, "running")
	require.NoError(t, err)

	disk.Heal(t)
	require.Eventually(t, func() bool { return h.prepare(ctx, "again", "other") == nil }, quick, quick/100)
}
