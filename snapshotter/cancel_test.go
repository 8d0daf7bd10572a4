package snapshotter_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// fragile is a context that is cancelled at its n-th use, or shortly after that.
type fragile struct {
	context.Context
	cancel context.CancelFunc
	looks  atomic.Int32
	n      int32
	soon   bool
}

func newFragile(parent context.Context, n int32, soon bool) *fragile {
	ctx, cancel := context.WithCancel(parent)
	return &fragile{Context: ctx, cancel: cancel, n: n, soon: soon}
}

func (f *fragile) look() {
	switch {
	case f.looks.Add(1) != f.n:
	case f.soon:
		time.AfterFunc(time.Duration(f.n)*20*time.Microsecond, f.cancel)
	default:
		f.cancel()
	}
}

func (f *fragile) Done() <-chan struct{} {
	f.look()
	return f.Context.Done()
}

func (f *fragile) Err() error {
	f.look()
	return f.Context.Err()
}

type cancelled struct {
	name   string
	spares int
	// before prepares the operation.
	before func(t *testing.T, b *bench)
	// run is the operation. Each run gets another number.
	run func(ctx context.Context, b *bench, number int) error
	// after undoes changes of before other than snapshots.
	after func(t *testing.T, b *bench)
	// reads is true for an operation that changes no record.
	reads bool
}

func layerBefore(t *testing.T, b *bench) { b.layer(t, "layer", "", "content") }

func prepares(parent string, opts ...snapshots.Opt) func(context.Context, *bench, int) error {
	return func(ctx context.Context, b *bench, _ int) error {
		_, err := b.Prepare(ctx, "a", parent, opts...)
		return err
	}
}

func views(parent string) func(context.Context, *bench, int) error {
	return func(ctx context.Context, b *bench, _ int) error {
		_, err := b.View(ctx, "a", parent)
		return err
	}
}

func freezes(key string) func(context.Context, *bench, int) error {
	return func(ctx context.Context, b *bench, _ int) error {
		frozen, err := b.Freeze(ctx, key)
		if err == nil {
			frozen.Release(ctx)
		}
		return err
	}
}

func forks(ctx context.Context, b *bench, _ int) error {
	token, err := b.IssueFork(ctx, "a")
	if err == nil {
		_, err = b.Prepare(ctx, "fork", "", from(token))
	}
	return err
}

func commits(ctx context.Context, b *bench, _ int) error { return b.Commit(ctx, "committed", "a") }

// dormantBefore creates an inactive snapshot, as after a crash.
func dormantBefore(t *testing.T, b *bench) {
	b.prepare(t, "a", "")
	b.restart(t, true)
}

func openBefore(t *testing.T, b *bench) {
	require.NoError(t, b.pool.Open(b.prepare(t, "a", ""), 1))
}

// closeAll closes the device of openBefore, in any state of its volume.
func closeAll(t *testing.T, b *bench) {
	active, err := b.pool.Active(t.Context())
	require.NoError(t, err)
	for _, vol := range active {
		if vol.OpenCount > 0 {
			require.NoError(t, b.pool.Open(vol.Path, -vol.OpenCount))
		}
	}
}

var cancelledOperations = []cancelled{
	{name: "Prepare", run: prepares("")},
	{name: "Prepare of a layer", before: layerBefore, run: prepares("layer")},
	{name: "Prepare with a spare", spares: 4, run: prepares("layer"), before: func(t *testing.T, b *bench) {
		layerBefore(t, b)
		require.Eventually(t, func() bool { return b.Spares().Present > 0 }, 10*time.Second, time.Millisecond)
	}},
	{name: "Prepare of a larger one", before: layerBefore, run: prepares("layer", labels(snapshotter.LabelSize, "128MiB"))},
	{name: "Prepare with a base volume", run: func(ctx context.Context, b *bench, number int) error {
		return prepares("", labels(snapshotter.LabelSize, fmt.Sprint(32<<20+number*4096)))(ctx, b, number)
	}},
	{name: "View", before: layerBefore, run: views("layer")},
	{name: "View of nothing", run: views("")},
	{name: "Commit", before: func(t *testing.T, b *bench) { b.prepare(t, "a", "") }, run: commits},
	{name: "Commit in use", before: openBefore, run: commits, after: closeAll},
	{name: "Commit after a crash", before: dormantBefore, run: commits},
	{name: "Remove", before: layerBefore, run: func(ctx context.Context, b *bench, _ int) error { return b.Remove(ctx, "layer") }},
	{name: "Update", before: layerBefore, run: func(ctx context.Context, b *bench, number int) error {
		_, err := b.Update(ctx, snapshots.Info{Name: "layer", Labels: map[string]string{"l": fmt.Sprint(number)}})
		return err
	}},
	{name: "Mounts", reads: true, before: dormantBefore, run: func(ctx context.Context, b *bench, _ int) error {
		_, err := b.Mounts(ctx, "a")
		return err
	}},
	{name: "Freeze", reads: true, before: openBefore, run: freezes("a"), after: closeAll},
	{name: "Freeze of a layer", reads: true, before: layerBefore, run: freezes("layer")},
	{name: "Fork", before: openBefore, run: forks, after: closeAll},
	{name: "Usage", reads: true, before: dormantBefore, run: func(ctx context.Context, b *bench, _ int) error {
		_, err := b.Usage(ctx, "a")
		return err
	}},
	{name: "Stat", reads: true, before: layerBefore, run: func(ctx context.Context, b *bench, _ int) error {
		_, err := b.Stat(ctx, "layer")
		return err
	}},
	{name: "Walk", reads: true, before: layerBefore, run: func(ctx context.Context, b *bench, _ int) error {
		return b.Walk(ctx, func(context.Context, snapshots.Info) error { return nil })
	}},
	{name: "Cleanup", reads: true, before: func(t *testing.T, b *bench) {
		layerBefore(t, b)
		require.NoError(t, b.Remove(t.Context(), "layer"))
	}, run: func(ctx context.Context, b *bench, _ int) error { return b.Cleanup(ctx) }},
}

// TestCancelledAtEveryStep cancels each operation at each use of its context, and shortly after. The
// operation is then complete or undone, leaves nothing behind, and can be repeated.
func TestCancelledAtEveryStep(t *testing.T) {
	for _, op := range cancelledOperations {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			config := fakeConfig()
			config.MaxBytes = 128 << 20
			config.Spares = op.spares
			b := newBench(t, config)
			number, failures := 0, 0
			for _, soon := range []bool{false, true} {
				for n := int32(1); ; n++ {
					ctx := newFragile(t.Context(), n, soon)
					if b.cancelledOnce(ctx, t, op, &number) {
						failures++
					}
					ctx.cancel()
					if ctx.looks.Load() < n {
						break
					}
				}
			}
			require.Positive(t, failures)
			t.Logf("cancelled %d times in %d", failures, number-failures)
		})
	}
}

// cancelledOnce runs an operation, reports whether it failed, and runs it again.
func (b *bench) cancelledOnce(ctx context.Context, t *testing.T, op cancelled, number *int) (failed bool) {
	t.Helper()
	if op.before != nil {
		op.before(t, b)
	}
	before := b.records(t)
	*number++
	err := op.run(ctx, b, *number)
	if err != nil {
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, before, b.records(t), "a failed operation was undone")
		*number++
		require.NoError(t, op.run(t.Context(), b, *number))
	}
	require.Equal(t, op.reads, before == b.records(t), "a successful operation is complete")
	if op.after != nil {
		op.after(t, b)
	}
	b.removeAll(t)
	b.requireNoLeftovers(t)
	return err != nil
}

func (b *bench) records(t *testing.T) string {
	t.Helper()
	var all []string
	require.NoError(t, b.WalkRecords(t.Context(), func(rec metadata.Snapshot) error {
		all = append(all, fmt.Sprintf("%+v", rec))
		return nil
	}))
	return strings.Join(all, "\n")
}

// removeAll removes all snapshots, children first.
func (b *bench) removeAll(t *testing.T) {
	t.Helper()
	var keys []string
	require.NoError(t, b.WalkRecords(t.Context(), func(rec metadata.Snapshot) error {
		keys = append(keys, rec.Key)
		return nil
	}))
	for len(keys) > 0 {
		left := len(keys)
		keys = slices.DeleteFunc(keys, func(key string) bool { return b.Remove(t.Context(), key) == nil })
		require.Less(t, len(keys), left)
	}
}

// The parent is removed while a Prepare creates its volume, and then the caller gives up. This is not
// reported as data loss.
func TestParentRemovedAndPrepareGivenUp(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0
	b := newBench(t, config)
	b.layer(t, "layer", "", "content")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b.pool.SetFault(func(method string, _ thin.ID) error {
		if method == "CreateSnap" {
			assert.NoError(t, b.Remove(t.Context(), "layer"))
			assert.NoError(t, b.Cleanup(t.Context()))
			cancel()
		}
		return nil
	})
	_, err := b.Prepare(ctx, "container", "layer")
	require.Error(t, err)
	require.False(t, errdefs.IsDataLoss(err), err)
}
