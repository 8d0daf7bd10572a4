package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestPoolTrim: `thinsnap pool trim` returns freed blocks to a running daemon's pool, and to the file system below it.
func TestPoolTrim(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	d := harnesstest.StartThinsnapWith(t, tools, "trims", harness.Options{DataSize: "256MiB", MetadataSize: "4MiB", NoSpares: true})
	ctx, sn := t.Context(), d.Snapshotter(t)
	allocated := func() int64 {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(d.Info(t).Pool.Data.LoopFile, &st))
		return st.Blocks * 512
	}
	for _, key := range []string{"one", "two"} {
		dir := mountNew(ctx, t, sn, key)
		writeMiB(t, filepath.Join(dir, "deleted"), 20)
		writeMiB(t, filepath.Join(dir, "kept"), 1)
		require.NoError(t, os.Remove(filepath.Join(dir, "deleted")))
	}
	_, err = sn.Prepare(ctx, "stopped", "")
	require.NoError(t, err)
	unix.Sync()
	before := allocated()

	var done struct {
		Snapshots  []admin.Trimming `json:"snapshots"`
		UsedBefore uint64           `json:"used_before_bytes"`
		UsedAfter  uint64           `json:"used_after_bytes"`
	}
	trim := func(args ...string) {
		t.Helper()
		require.NoError(t, json.Unmarshal([]byte(d.Run(t, append([]string{"pool", "trim", "--json"}, args...)...)), &done))
	}
	trim("one")
	require.Len(t, done.Snapshots, 1)
	require.GreaterOrEqual(t, done.Snapshots[0].Unmapped, uint64(19*mib))
	require.LessOrEqual(t, done.UsedAfter, done.UsedBefore-19*mib)
	require.Less(t, allocated(), before-15*mib)
	trim()
	require.Len(t, done.Snapshots, 2, "the mounted snapshots only")
	require.Less(t, allocated(), before-34*mib)
	require.Contains(t, d.Run(t, "pool", "trim"), "Snapshots Trimmed: 2\n")
}
