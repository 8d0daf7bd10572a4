package snapshotter_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/snapshotter"
)

func labels(pairs ...string) snapshots.Opt {
	m := make(map[string]string)
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return snapshots.WithLabels(m)
}

func TestContentSurvivesACrash(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "one", "", "first")
	b.layer(t, "two", "one", "second")
	require.NoError(t, b.pool.Write(b.prepare(t, "container", "two"), "never flushed"))
	b.restart(t, true)
	require.Equal(t, "first", b.content(t, "one"))
	require.Equal(t, "second", b.content(t, "two"))
	mounts, err := b.Mounts(t.Context(), "container")
	require.NoError(t, err)
	content, err := b.pool.Read(mounts[0].Source)
	require.NoError(t, err)
	require.Equal(t, "second", content)
	b.requireNoLeftovers(t)
}

func TestCommitInUse(t *testing.T) {
	b := newBench(t, fakeConfig())
	dev := b.prepare(t, "a", "")
	require.NoError(t, b.pool.Open(dev, 1))
	require.NoError(t, b.pool.Write(dev, "at the commit"))
	require.NoError(t, b.Commit(t.Context(), "layer", "a"))
	require.NoError(t, b.pool.Write(dev, "after the commit"))
	require.Equal(t, "at the commit", b.content(t, "layer"))
	b.restart(t, false)
	require.Equal(t, "at the commit", b.content(t, "layer"))
	require.NoError(t, b.pool.Open(dev, -1))
	b.requireNoLeftovers(t)
}

// The mount of a mounted snapshot is a bind, which the client may make read-only.
func TestMountsInUse(t *testing.T) {
	b := newBench(t, fakeConfig())
	dev := b.prepare(t, "a", "")
	plain, err := b.Mounts(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, dev, plain[0].Source)

	require.NoError(t, b.pool.Open(dev, 1))
	bound, err := b.Mounts(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, "bind", bound[0].Type)
	require.NoError(t, b.pool.Open(dev, -1))
	again, err := b.Mounts(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, bound, again, "the mount stays until Commit or Remove")

	require.NoError(t, b.pool.Write(dev, "content"))
	require.NoError(t, b.Commit(t.Context(), "layer", "a"))
	require.Equal(t, "content", b.content(t, "layer"))
	require.NoError(t, b.pool.Open(b.prepare(t, "b", "layer"), 1))
	_, err = b.Mounts(t.Context(), "b")
	require.NoError(t, err)
	b.restart(t, false)
	require.NoError(t, b.Remove(t.Context(), "b"))
	b.pool.Crash()
	b.requireNoLeftovers(t)
}

func TestRemoveInUse(t *testing.T) {
	b := newBench(t, fakeConfig())
	dev := b.prepare(t, "a", "")
	require.NoError(t, b.pool.Open(dev, 1))
	require.NoError(t, b.Remove(t.Context(), "a"))
	require.NoError(t, b.Cleanup(t.Context()), "Cleanup does not wait for a device in use")
	require.Eventually(t, func() bool { return b.background(t).Deferred == 1 }, 10*time.Second, time.Millisecond)
	require.EqualValues(t, 1, b.background(t).DeferredDeletions)
	require.Zero(t, b.background(t).DeferredRemovals)
	b.prepare(t, "a", "")
	require.NoError(t, b.pool.Open(dev, -1))
	b.requireNoLeftovers(t)
	require.Eventually(t, func() bool { return b.background(t) == snapshotter.BackgroundCounts{} }, 10*time.Second, time.Millisecond)
}

// The device of a removed View is deactivated after the last close.
func TestRemoveOfAViewInUse(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	view, err := b.View(t.Context(), "view", "layer")
	require.NoError(t, err)
	require.NoError(t, b.pool.Open(view[0].Source, 1))
	require.NoError(t, b.Remove(t.Context(), "view"))
	require.Eventually(t, func() bool { return b.background(t).DeferredRemovals == 1 }, 10*time.Second, time.Millisecond)
	require.Zero(t, b.background(t).DeferredDeletions)
	require.NoError(t, b.pool.Open(view[0].Source, -1))
	require.NoError(t, b.Cleanup(t.Context()))
	require.Equal(t, snapshotter.BackgroundCounts{}, b.background(t))
}

func (b *bench) background(t *testing.T) snapshotter.BackgroundCounts {
	t.Helper()
	counts, err := b.Background(t.Context())
	require.NoError(t, err)
	return counts
}

func TestViewsShareOneVolume(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	first, err := b.View(t.Context(), "v1", "layer")
	require.NoError(t, err)
	second, err := b.View(t.Context(), "v2", "layer")
	require.NoError(t, err)
	require.Equal(t, first, second)
	require.Contains(t, first[0].Options, "ro")

	require.NoError(t, b.Remove(t.Context(), "v1"))
	require.NoError(t, b.Cleanup(t.Context()))
	_, err = b.pool.Read(first[0].Source)
	require.NoError(t, err, "the other View still needs it")
	require.ErrorIs(t, b.Remove(t.Context(), "layer"), errdefs.ErrFailedPrecondition)

	require.NoError(t, b.Remove(t.Context(), "v2"))
	require.NoError(t, b.Cleanup(t.Context()))
	_, err = b.pool.Read(first[0].Source)
	require.Error(t, err, "it is no longer needed")
}

func TestIDMappingReachesTheMounts(t *testing.T) {
	b := newBench(t, fakeConfig())
	mapped := labels(snapshots.LabelSnapshotUIDMapping, "0:1000:65536", snapshots.LabelSnapshotGIDMapping, "0:2000:65536")
	mounts, err := b.Prepare(t.Context(), "a", "", mapped)
	require.NoError(t, err)
	require.Contains(t, mounts[0].Options, "uidmap=0:1000:65536")
	require.Contains(t, mounts[0].Options, "gidmap=0:2000:65536")
	again, err := b.Mounts(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, mounts, again)
	_, err = b.Prepare(t.Context(), "b", "", labels(snapshots.LabelSnapshotUIDMapping, "0:1000:65536"))
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}

func TestMountOptions(t *testing.T) {
	config := fakeConfig()
	config.Filesystem, config.BaseBytes = filesystem.XFS, filesystem.MinXFS
	config.MountOptions = []string{"noatime"}
	b := newBench(t, config)
	mounts, err := b.Prepare(t.Context(), "a", "")
	require.NoError(t, err)
	require.Equal(t, []string{"rw", "nouuid", "noatime"}, mounts[0].Options)
	require.Equal(t, "xfs", mounts[0].Type)
}

// A committed volume is never activated for writing again, with any concurrent calls.
func TestMountsBesideCommit(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0 // their volumes are active without a snapshot
	b := newBench(t, config)
	for round := range 50 {
		key, layer := fmt.Sprint("key-", round), fmt.Sprint("layer-", round)
		b.prepare(t, key, "")
		var wg sync.WaitGroup
		var committed atomic.Int32
		for i := range 6 {
			wg.Go(func() {
				var err error
				if i%2 == 0 {
					if err = b.Commit(t.Context(), layer, key); err == nil {
						committed.Add(1)
					}
				} else {
					_, err = b.Mounts(t.Context(), key)
				}
				if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsAlreadyExists(err) {
					t.Errorf("%v", err)
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, committed.Load())
	}
	require.NoError(t, b.Cleanup(t.Context()))
	active, err := b.pool.Active(t.Context())
	require.NoError(t, err)
	for _, vol := range active {
		require.True(t, vol.ReadOnly, "volume %d is committed", vol.ID)
	}
}

func TestUpdate(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.prepare(t, "a", "", labels("one", "1", "two", "2"))
	info, err := b.Update(t.Context(), snapshots.Info{Name: "a", Labels: map[string]string{"one": "", "three": "3"}}, "labels.one", "labels.three")
	require.NoError(t, err)
	require.Equal(t, map[string]string{"two": "2", "three": "3"}, info.Labels)
	_, err = b.Update(t.Context(), snapshots.Info{Name: "a", Parent: "x"}, "parent")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	stat, err := b.Stat(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, info, stat)
}

func TestWalkFilters(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	b.prepare(t, "a", "layer", labels("org.example/x", "yes"))
	for filter, want := range map[string]string{
		"kind==active":                "a",
		"kind==committed":             "layer",
		"parent==layer":               "a",
		`labels."org.example/x"==yes`: "a",
		"name==layer":                 "layer",
		"kind==view":                  "",
	} {
		var got []string
		require.NoError(t, b.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
			got = append(got, info.Name)
			return nil
		}, filter))
		require.Equal(t, want, strings.Join(got, ","), filter)
	}
	err := b.Walk(t.Context(), func(context.Context, snapshots.Info) error { return nil }, "((")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}

func TestUsageOfAnInactiveVolumeActivatesItOnce(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.prepare(t, "a", "")
	want, err := b.Usage(t.Context(), "a")
	require.NoError(t, err)
	b.restart(t, true)
	require.NoError(t, b.Cleanup(t.Context()))
	before := b.pool.Calls()["Activate"]
	for range 3 {
		got, err := b.Usage(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	require.Equal(t, 1, b.pool.Calls()["Activate"]-before)
}

func TestStartActivatesNothingButTheBase(t *testing.T) {
	b := newBench(t, fakeConfig())
	for i := range 50 {
		b.prepare(t, fmt.Sprint(i), "")
	}
	require.NoError(t, b.Close())
	b.pool.Crash()
	before := b.pool.Calls()
	b.openStore(t)
	require.NoError(t, b.start(t))
	after := b.pool.Calls()
	require.LessOrEqual(t, after["Activate"]-before["Activate"], 1)
	require.Zero(t, after["CreateSnap"]-before["CreateSnap"])
}

func TestOneTransactionPerOperation(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	require.NoError(t, b.Cleanup(t.Context()))
	cost := func(op func() error) int {
		before := b.store.Stats()
		require.NoError(t, op())
		return int(b.store.Stats().Operations - before.Operations)
	}
	ctx := t.Context()
	require.Equal(t, 1, cost(func() error { _, err := b.Prepare(ctx, "a", "layer"); return err }))
	require.Equal(t, 0, cost(func() error { _, err := b.Mounts(ctx, "a"); return err }))
	require.Equal(t, 1, cost(func() error { _, err := b.View(ctx, "v", "layer"); return err }))
	require.Equal(t, 1, cost(func() error { return b.Commit(ctx, "b", "a") }))
	require.Equal(t, 1, cost(func() error { return b.Remove(ctx, "v") }))
	require.NoError(t, b.Cleanup(ctx))
	// Consecutive Prepares also take leases: one for 64 ids.
	const n = 640
	got := cost(func() error {
		for i := range n {
			if _, err := b.Prepare(ctx, fmt.Sprint("n-", i), "b"); err != nil {
				return err
			}
		}
		return nil
	})
	require.LessOrEqual(t, got, n+n/64+1)
}

func TestCloseTwice(t *testing.T) {
	b := newBench(t, fakeConfig())
	require.NoError(t, b.Close())
	require.NoError(t, b.Close())
}

func TestCleanupEndsWithItsContext(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.prepare(t, "a", "")
	block := make(chan struct{})
	b.pool.SetFault(func(m string, _ thin.ID) error {
		if m == "Delete" {
			<-block
		}
		return nil
	})
	require.NoError(t, b.Remove(t.Context(), "a"))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, b.Cleanup(ctx), context.DeadlineExceeded)
	close(block)
}
