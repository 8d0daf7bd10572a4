package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// busyPool counts the deactivations that found the volume open.
type busyPool struct {
	snapshotter.Pool
	busy atomic.Int64
}

func (p *busyPool) Deactivate(ctx context.Context, id thin.ID) error {
	err := p.Pool.Deactivate(ctx, id)
	if errors.Is(err, devmapper.ErrBusy) {
		p.busy.Add(1)
	}
	return err
}

// awaitUdev waits until udevd has handled every event. Without udevd it skips the test.
func awaitUdev(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/run/udev/control"); err != nil {
		t.Skip("udevd does not run")
	}
	out, err := exec.CommandContext(t.Context(), "udevadm", "settle", "--timeout=600").CombinedOutput()
	require.NoError(t, err, string(out))
}

// nodes returns the names below /dev, and the entries of mapped devices in udev's database.
func nodes(t *testing.T) []string {
	t.Helper()
	var all []string
	require.NoError(t, filepath.WalkDir("/dev", func(path string, _ os.DirEntry, err error) error {
		all = append(all, path)
		return err
	}))
	out, err := exec.CommandContext(t.Context(), "udevadm", "info", "--export-db").Output()
	require.NoError(t, err)
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "E: DM_NAME=") {
			all = append(all, strings.TrimSpace(line))
		}
	}
	return all
}

// TestKernelCyclesWithUdev makes and removes a thousand snapshots while udevd reads each device. No device
// is found busy, and nothing is left.
func TestKernelCyclesWithUdev(t *testing.T) {
	dmtest.RequireKernel(t)
	awaitUdev(t)
	cycles, clients := 1000, 4
	if testing.Short() {
		cycles = 100
	}
	config := filesystems["ext4"]
	config.Spares = 8
	ctx, h := newTestHost(t, config)
	h.layer(ctx, t, "layer", "", "x", 1<<20)
	require.NoError(t, h.Close())
	p := &busyPool{}
	h.wrap = func(inner snapshotter.Pool) snapshotter.Pool {
		p.Pool = inner
		return p
	}
	require.NoError(t, h.open(ctx, config))
	awaitUdev(t)
	before := nodes(t)

	cycle := func(client, n int) error {
		key := fmt.Sprintf("cycle-%d-%d", client, n)
		mounts, err := h.Prepare(ctx, key, "layer")
		if err != nil {
			return err
		}
		if n%4 == 0 {
			// The close of a device that was written to triggers udev.
			err := mount.WithTempMount(ctx, mounts, func(dir string) error {
				return os.WriteFile(filepath.Join(dir, "file"), []byte(key), 0o600)
			})
			if err != nil {
				return fmt.Errorf("use %s: %w", key, err)
			}
		}
		return h.Remove(ctx, key)
	}
	began := time.Now()
	errs := make([]error, clients)
	var group sync.WaitGroup
	for client := range clients {
		group.Go(func() {
			for n := 0; n < cycles/clients && errs[client] == nil; n++ {
				errs[client] = cycle(client, n)
			}
		})
	}
	group.Wait()
	require.NoError(t, errors.Join(errs...))
	require.NoError(t, h.Cleanup(ctx))
	t.Logf("%d cycles in %v", cycles, time.Since(began).Round(time.Second))
	background, err := h.Background(ctx)
	require.NoError(t, err)
	require.Zero(t, background.Deferred)
	require.Zero(t, p.busy.Load(), "devices that were open when they were to go")

	require.NoError(t, h.Close())
	active, err := h.pool.Active(ctx)
	require.NoError(t, err)
	require.Empty(t, active)
	awaitUdev(t)
	require.Subset(t, before, nodes(t))
	require.NoError(t, h.open(ctx, config))
}
