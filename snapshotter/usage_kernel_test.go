package snapshotter_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs/fstest"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/thintools"
	"github.com/thinsnap/thinsnap/metadata"
)

func (h *host) records(t *testing.T) map[string]metadata.Snapshot {
	t.Helper()
	all := map[string]metadata.Snapshot{}
	require.NoError(t, h.WalkRecords(t.Context(), func(rec metadata.Snapshot) error { all[rec.Key] = rec; return nil }))
	return all
}

// TestUsageIsThatOfThinDump compares the usage of each snapshot in a history of layers and containers with
// thin_dump. Overwritten blocks count. A committed snapshot keeps the usage of its Commit, even if it was
// mounted then.
func TestUsageIsThatOfThinDump(t *testing.T) {
	steps := 9
	if dmtest.Thorough() {
		steps = 150
	}
	for _, fs := range dmtest.Filesystems() {
		t.Run(fs, func(t *testing.T) {
			config := filesystems[fs]
			config.Spares = 0
			ctx, h := newTestHost(t, config)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			layers, committed := []string{""}, map[string]snapshots.Usage{}
			for i := range steps {
				commit, isMounted, key := i%3 > 0, r.IntN(2) == 0, fmt.Sprintf("box %d", i)
				if commit && !isMounted && r.IntN(2) == 0 { // without a journal and barriers
					key = unpackKeyOf(strconv.Itoa(i))
				}
				mounts, err := h.Prepare(ctx, key, layers[r.IntN(len(layers))])
				require.NoError(t, err)
				dir := t.TempDir()
				require.NoError(t, mount.All(mounts, dir))
				for range r.IntN(4) {
					file := filepath.Join(dir, fmt.Sprint(r.IntN(6)))
					if r.IntN(5) == 0 {
						require.NoError(t, os.RemoveAll(file))
						continue
					}
					content := bytes.Repeat([]byte{byte(r.IntN(256))}, 1+r.IntN(1<<20))
					require.NoError(t, os.WriteFile(file, content, 0o644))
				}
				name := fmt.Sprintf("layer %d", i)
				if commit && isMounted {
					require.NoError(t, h.Commit(ctx, name, key))
				}
				require.NoError(t, mount.UnmountAll(dir, 0))
				if commit && !isMounted {
					require.NoError(t, h.Commit(ctx, name, key))
				}
				if commit {
					layers = append(layers, name)
					committed[name], err = h.Usage(ctx, name)
					require.NoError(t, err)
				}
			}
			require.NoError(t, h.Cleanup(ctx))
			require.Eventually(t, func() bool { return h.trash(t) == 0 }, time.Minute, 10*time.Millisecond)

			records := h.records(t)
			usage, exclusive := map[string]snapshots.Usage{}, map[string]uint64{}
			for key, rec := range records {
				var err error
				usage[key], err = h.Usage(ctx, key)
				require.NoError(t, err)
				exclusive[key], err = h.ExclusiveOf(ctx, rec)
				require.NoError(t, err)
				if rec.Kind == snapshots.KindCommitted {
					require.True(t, rec.Usage.Exact)
					require.Equal(t, committed[key], usage[key])
				}
			}
			require.NoError(t, h.Close())
			require.NoError(t, h.pool.Close(ctx))
			all := thintools.Dump(t, filepath.Join(h.root, "pool", "metadata"))
			require.NoError(t, h.open(ctx, config))
			status, err := h.pool.Status(ctx)
			require.NoError(t, err)
			users := map[uint64]int{}
			for _, mapped := range all {
				for _, data := range mapped {
					users[data]++
				}
			}
			for key, rec := range records {
				own, alone := uint64(0), uint64(0)
				mapped, parent := all[thin.ID(rec.VolumeID)], all[thin.ID(records[rec.Parent].VolumeID)]
				for virtual, data := range mapped {
					if from, both := parent[virtual]; !both || from != data {
						own++
					}
					if users[data] == 1 {
						alone++
					}
				}
				require.Equal(t, int64(own*status.BlockBytes), usage[key].Size, "usage of %s, a child of %s", key, rec.Parent)
				require.Equal(t, alone*status.BlockBytes, exclusive[key], "exclusive of %s, a child of %s", key, rec.Parent)
				if rec.Kind == snapshots.KindCommitted {
					require.Equal(t, int64(uint64(len(mapped))*status.BlockBytes), rec.Usage.Bytes)
				}
			}
		})
	}
}

// TestExclusiveWithSpares: a removal also deletes the spares.
func TestExclusiveWithSpares(t *testing.T) {
	config := filesystems["ext4"]
	config.Spares = 4
	ctx, h := newTestHost(t, config)
	require.NoError(t, prepareAndCommit(t, h, "layer", "", fstest.CreateRandomFile("/a", 1, 1<<20, 0o600)))
	layer := h.records(t)["layer"]
	require.Eventually(t, func() bool {
		exclusive, err := h.ExclusiveOf(ctx, layer)
		require.NoError(t, err)
		twins, err := h.pool.Twins(ctx, thin.ID(layer.VolumeID))
		require.NoError(t, err)
		return exclusive >= 1<<20 && len(twins) > 0
	}, time.Minute, 10*time.Millisecond)
}

// TestUsageWithoutANode: a device without a node is active, and its node is created again.
func TestUsageWithoutANode(t *testing.T) {
	config := filesystems["ext4"]
	ctx, h := newTestHost(t, config)
	mounts, err := h.Prepare(ctx, "box", "")
	require.NoError(t, err)
	require.NoError(t, os.Remove(mounts[0].Source))
	_, err = h.Usage(ctx, "box")
	require.NoError(t, err)
	_, err = os.Stat(mounts[0].Source)
	require.NoError(t, err)
	mounted(t, mounts, func(string) {
		_, err = h.Usage(ctx, "box")
		require.NoError(t, err)
	})
}
