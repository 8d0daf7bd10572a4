package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// capabilities returns the capabilities of the systemd unit, by their names in setpriv(1).
func capabilities(t *testing.T) string {
	t.Helper()
	unit, err := os.ReadFile("../cmd/thinsnap/systemd/thinsnap.service")
	require.NoError(t, err)
	left := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindSubmatch(unit)
	require.NotNil(t, left)
	set := "-all"
	for name := range strings.FieldsSeq(string(left[1])) {
		set += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	return set
}

// TestWithTheUnitsCapabilities runs all kernel operations of the daemon with the capabilities of the systemd unit
// alone.
func TestWithTheUnitsCapabilities(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	under := []string{"setpriv", "--bounding-set=" + capabilities(t), "--inh-caps=-all", "--no-new-privs"}
	for _, filesystem := range []string{"ext4", "xfs"} {
		t.Run(filesystem, func(t *testing.T) {
			d := harnesstest.StartThinsnapWith(t, tools, "confined-"+filesystem, harness.Options{
				Filesystem: filesystem, BaseSize: "512MiB", MaxSize: "1GiB", Under: under,
			})
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.PID()))
			require.NoError(t, err)
			require.Regexp(t, `CapEff:\t0{9}1200004\nCapBnd:\t0{9}1200004\n`, string(status),
				"CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN and CAP_SYS_RESOURCE")
			require.Contains(t, string(status), "NoNewPrivs:\t1\n")
			sn := d.Snapshotter(t)
			ctx := t.Context()

			mounts, err := sn.Prepare(ctx, "work", "", snapshots.WithLabels(map[string]string{snapshotter.LabelSize: "1GiB"}))
			require.NoError(t, err, "the file system is grown")
			file := filepath.Join(t.TempDir(), "mnt", "file")
			dir := filepath.Dir(file)
			require.NoError(t, os.Mkdir(dir, 0o700))
			require.NoError(t, mount.All(mounts, dir))
			defer func() { require.NoError(t, mount.UnmountAll(dir, 0)) }()
			require.NoError(t, os.WriteFile(file, []byte("content"), 0o600))
			shared, err := sn.Mounts(ctx, "work")
			require.NoError(t, err)
			require.Equal(t, "bind", shared[0].Type, "thinsnap has a mount of its own")
			require.Equal(t, os.Getpid(), d.Info(t).Client.PID)
			require.True(t, d.Info(t).Client.Alive)
			require.NoError(t, sn.Commit(ctx, "layer", "work"), "while mounted: thinsnap makes a copy, and replays the copy's journal")
			require.NoError(t, mount.UnmountAll(dir, 0))

			mounts, err = sn.View(ctx, "view", "layer")
			require.NoError(t, err)
			require.NoError(t, mount.All(mounts, dir))
			require.FileExists(t, file)
			require.NoError(t, mount.UnmountAll(dir, 0))
			d.Stop(t)
			d.Start(t)
			mounts, err = sn.Prepare(ctx, "container", "layer")
			require.NoError(t, err, "by a daemon that took over the pool")
			require.NoError(t, mount.All(mounts, dir))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "new"), []byte("new"), 0o600))
			require.NoError(t, os.Chown(dir, 1000, 1000))
			require.NoError(t, os.Chmod(dir, 0o700))
			require.Equal(t, "A /new", d.Run(t, "diff", "container"))
			require.Contains(t, d.Run(t, "pool", "trim"), "Snapshots Trimmed: 1\n", "the snapshot's root belongs to another user")
			require.NoError(t, mount.UnmountAll(dir, 0))
			for _, key := range []string{"container", "view", "layer"} {
				require.NoError(t, sn.Remove(ctx, key))
			}
			cleaner, ok := sn.(snapshots.Cleaner)
			require.True(t, ok)
			require.NoError(t, cleaner.Cleanup(ctx))
			require.Empty(t, d.Info(t).Snapshots)
			require.Zero(t, d.Info(t).Devices.Trash)
		})
	}
}
