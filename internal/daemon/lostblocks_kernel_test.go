package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool/repair"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest/faulty"
)

// TestLostBlocks: a full disk below a foreign pool fails writes to new blocks. Linux (6.1 and 7.2)
// leaks the blocks that it allocated for them, and thin_check accepts that. A check finds them, and
// a repair frees them.
func TestLostBlocks(t *testing.T) {
	f := restore(t, config.ModeExisting, false)
	run(t, "fallocate", "--length", "16M", upgradeTop+"/metadata")
	require.Empty(t, f.open(t))
	ctx := t.Context()
	mounts, err := f.snapshotter.Prepare(ctx, "writer", fixtureLayer(6, "3"))
	require.NoError(t, err)
	full, err := os.Create(upgradeTop + "/full")
	require.NoError(t, err)
	defer full.Close()
	require.NoError(t, mount.WithTempMount(ctx, mounts, func(dir string) error {
		var size int64
		for step := int64(1 << 30); step >= 4<<10; step /= 2 {
			for unix.Fallocate(int(full.Fd()), 0, size, step) == nil {
				size += step
			}
		}
		file, err := os.OpenFile(filepath.Join(dir, "file"), os.O_CREATE|os.O_WRONLY|unix.O_DIRECT, 0o600)
		if err != nil {
			return nil // a write may fail
		}
		defer file.Close()
		block, err := unix.Mmap(-1, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		require.NoError(t, err)
		failed := 0
		for i := range int64(50) {
			if _, err := file.WriteAt(block, i*64<<10); err != nil {
				failed++
			}
		}
		require.Positive(t, failed)
		return unix.Munmap(block)
	}))
	require.NoError(t, full.Truncate(0))
	require.NoError(t, f.snapshotter.Remove(ctx, "writer"))
	require.NoError(t, f.snapshotter.Cleanup(ctx))
	require.Contains(t, f.check(t), check.KindBlocks)
	f.close()

	control, err := devmapper.Open()
	require.NoError(t, err)
	defer control.Close()
	deactivateOurs(t, control, "thinsnap")
	require.NoError(t, control.Deactivate("by-hand"))
	detach(t, upgradeTop+"/metadata")
	// thin_check needs direct I/O, which tmpfs lacks in Linux 6.1.
	file := filepath.Join(faulty.New(t, 64<<20).Mount(t, true), "metadata")
	run(t, "cp", upgradeTop+"/metadata", file)
	m := repair.Metadata{File: file, BlockBytes: 64 << 10, DataBytes: 1 << 30, TransactionID: 41, Used: true}
	before, err := repair.Check(ctx, m.File)
	require.NoError(t, err)
	require.False(t, before.Damaged(), before.Complaints)
	require.Positive(t, before.Lost)
	plan, err := m.Plan(ctx, 0)
	require.NoError(t, err)
	outcome, err := plan.Do(ctx)
	require.NoError(t, err)
	require.True(t, outcome.Compared)
	require.Empty(t, outcome.Losses)
	require.Zero(t, outcome.Report.Lost)
}
