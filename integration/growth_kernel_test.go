package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

const mib = 1 << 20

// TestPoolThatGrows fills a pool beyond its first size and then to its limit. The writer notices nothing. New snapshots
// are refused when the limit leaves too little space, and service resumes without a restart when space is free again.
func TestPoolThatGrows(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	d := harnesstest.StartThinsnapWith(t, tools, "grows", harness.Options{
		DataSize: "128MiB", MetadataSize: "4MiB", NoSpares: true,
	})
	require.EqualValues(t, 128*mib, d.Info(t).Pool.Data.Total)
	d.Stop(t)
	settings, err := os.ReadFile(d.Config())
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(d.Config(), bytes.Replace(settings, []byte("128MiB"), []byte("512MiB"), 1), 0o600))
	d.Start(t)
	ctx, sn := t.Context(), d.Snapshotter(t)
	other := mountNew(ctx, t, sn, "other")
	writeMiB(t, filepath.Join(other, "file"), 8)
	hog := mountNew(ctx, t, sn, "hog")
	for i := range 6 {
		writeMiB(t, filepath.Join(hog, fmt.Sprint("file-", i)), 50)
	}
	pool := d.Info(t).Pool
	t.Logf("%+v", pool)
	require.EqualValues(t, 1, pool.Autoextend.DataExtensions, "by less than 1 GiB, up to the limit")
	require.EqualValues(t, 512*mib, pool.Data.Total)
	require.Equal(t, "rw", pool.State)
	require.Contains(t, d.Run(t, "pool", "status"), "Thin Pool Autoextend: at 80% by 20%, data up to 512MiB\n")

	// Fill the pool until it cannot grow, and then until snapshots are refused.
	for i := range 3 {
		writeMiB(t, filepath.Join(hog, fmt.Sprint("more-", i)), 50)
	}
	require.Eventually(t, func() bool { return d.Info(t).Pool.Autoextend.Stuck != "" }, 15*time.Second, 200*time.Millisecond)
	require.Regexp(t, `Thin Pool Autoextend: stuck: \S+ of 512MiB data used, and it cannot grow: `, d.Run(t, "info"))
	require.EqualValues(t, 512*mib, d.Info(t).Pool.Data.Total)
	writeMiB(t, filepath.Join(hog, "more-3"), 20)
	require.ErrorContains(t, refused(ctx, t, sn), "of 536870912 bytes of data left, less than the minimum of 10%")
	writeMiB(t, filepath.Join(other, "file"), 8)

	// The operator extends the pool beyond autoextend's limit.
	d.Run(t, "pool", "extend", "--data", "+128MiB", "--metadata", "8MiB")
	_, err = sn.Prepare(ctx, "allowed", "")
	require.NoError(t, err)
	_, err = d.TryRun(nil, "pool", "extend", "--data", "100MiB")
	require.ErrorContains(t, err, "cannot shrink")

	// The pool keeps its size, and freed space is used again.
	d.Stop(t)
	d.Start(t)
	sn = d.Snapshotter(t)
	pool = d.Info(t).Pool
	require.EqualValues(t, 640*mib, pool.Data.Total)
	require.EqualValues(t, 8*mib, pool.Metadata.Total)
	writeMiB(t, filepath.Join(hog, "last"), 110)
	_ = refused(ctx, t, sn)
	require.NoError(t, mount.UnmountAll(hog, 0))
	require.NoError(t, sn.Remove(ctx, "hog"))
	cleaner, ok := sn.(snapshots.Cleaner)
	require.True(t, ok)
	require.NoError(t, cleaner.Cleanup(ctx))
	_, err = sn.Prepare(ctx, "again", "")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return d.Info(t).Pool.Autoextend.Stuck == "" }, 15*time.Second, 200*time.Millisecond)
}

// TestDiskPoolThatGrows does the same on a disk, where LVM extends the pool. LVM does not report new space in the
// volume group; thinsnap notices it nevertheless.
func TestDiskPoolThatGrows(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	device := os.Getenv("THINSNAP_DISK1")
	require.NotEmpty(t, device, "THINSNAP_DISK1 names a disk that may be overwritten")
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	d := harnesstest.NewThinsnap(t, tools, "grows-too", harness.Options{Device: device, ThinpPercent: 2, NoSpares: true})
	d.Launch(t)
	require.Eventually(t, d.Ready, makingLimit, 100*time.Millisecond)
	ctx, sn := t.Context(), d.Snapshotter(t)
	first := d.Info(t).Pool
	monitored := func() string {
		return strings.TrimSpace(command(t, "lvs", "--noheadings", "--options", "seg_monitor", "grows-too/pool"))
	}
	require.Eventually(t, func() bool { return monitored() == "not monitored" }, 30*time.Second, 100*time.Millisecond)
	hog := mountNew(ctx, t, sn, "hog")
	written := uint64(0)
	fill := func(until func(admin.Pool) bool) (pool admin.Pool) {
		t.Helper()
		for pool = d.Info(t).Pool; !until(pool); pool = d.Info(t).Pool {
			require.Less(t, written, first.Data.Total*4)
			writeMiB(t, filepath.Join(hog, fmt.Sprint("file-", written)), 40)
			written += 40 * mib
		}
		return pool
	}
	pool := fill(func(p admin.Pool) bool { return p.Autoextend.DataExtensions >= 2 })
	require.Equal(t, "rw", pool.State)
	require.GreaterOrEqual(t, pool.Data.Total, first.Data.Total+first.Data.Total/5)

	command(t, "lvcreate", "--yes", "--name", "other", "--extents", "100%FREE", "grows-too")
	pool = fill(func(p admin.Pool) bool { return p.Data.Total-p.Data.Used < p.Data.Total/10 })
	require.Eventually(t, func() bool {
		return strings.Contains(d.Info(t).Pool.Autoextend.Stuck, "no space left in the pool's volume group")
	}, 30*time.Second, 200*time.Millisecond)
	_ = refused(ctx, t, sn)
	command(t, "lvremove", "--yes", "grows-too/other")
	require.Eventually(t, func() bool { return d.Info(t).Pool.Data.Total > pool.Data.Total }, 30*time.Second, 200*time.Millisecond)
	_, err = sn.Prepare(ctx, "allowed", "")
	require.NoError(t, err)
	before := d.Info(t).Pool.Metadata.Total
	d.Run(t, "pool", "extend", "--data", "2GiB", "--metadata", "+32MiB")
	pool = d.Info(t).Pool
	require.EqualValues(t, 2<<30, pool.Data.Total)
	require.Equal(t, before+32*mib, pool.Metadata.Total)

	// LVM's dmeventd extends the pool only while thinsnap does not.
	require.Equal(t, "not monitored", monitored())
	d.Stop(t)
	require.Equal(t, "monitored", monitored())
	d.Start(t)
	require.Eventually(t, func() bool { return monitored() == "not monitored" }, 30*time.Second, 100*time.Millisecond)
}

// refused prepares snapshots until one is refused for lack of space, and returns that error: thinsnap may use a state
// of the pool that is a second old.
func refused(ctx context.Context, t *testing.T, sn snapshots.Snapshotter) (err error) {
	t.Helper()
	require.Eventually(t, func() bool {
		if _, err = sn.Prepare(ctx, "refused", ""); err == nil {
			require.NoError(t, sn.Remove(ctx, "refused"))
		}
		return errdefs.IsResourceExhausted(err)
	}, 10*time.Second, 100*time.Millisecond)
	return err
}

// mountNew makes a snapshot and mounts it until the test ends.
func mountNew(ctx context.Context, t *testing.T, sn snapshots.Snapshotter, key string) (dir string) {
	t.Helper()
	mounts, err := sn.Prepare(ctx, key, "")
	require.NoError(t, err)
	dir = filepath.Join(t.TempDir(), "mnt")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, mount.All(mounts, dir))
	t.Cleanup(func() { require.NoError(t, mount.UnmountAll(dir, 0)) })
	return dir
}

// writeMiB writes a file, or overwrites it in place, and syncs it.
func writeMiB(t *testing.T, file string, n int) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE, 0o600)
	require.NoError(t, err)
	defer f.Close()
	piece := bytes.Repeat([]byte("x"), mib)
	for range n {
		_, err := f.Write(piece)
		require.NoError(t, err)
	}
	require.NoError(t, f.Sync())
}
