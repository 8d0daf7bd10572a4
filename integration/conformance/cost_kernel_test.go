package conformance

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/integration/trace"
)

// TestCosts counts, with strace, what each operation costs when nothing was made
// ahead and the pool does not grow by itself: on its way no program is executed, and bbolt commits one transaction,
// which is two fdatasyncs; Commit has one fsync more, of the device, and stamps the pool. The background
// has had its time before each of them; what the watch for events does meanwhile, once a
// second at most, is left out. The system calls are all but those of Go's runtime; a transaction is up to eight.
func TestCosts(t *testing.T) {
	ctx, daemon, sn := clientWith(t, harness.Options{Filesystem: "ext4", BaseSize: filesystems["ext4"], NoSpares: true, NoAutoextend: true})
	_, err := sn.Prepare(ctx, "first", "")
	require.NoError(t, err)
	require.NoError(t, sn.Commit(ctx, "layer", "first"))

	costs(t, daemon, []step{
		// One ioctl, the pool's status, is needed only if none was taken for a second.
		{"Prepare", func() error { _, err := sn.Prepare(ctx, "a", "layer"); return err }, trace.Cost{Syncs: 2, Transactions: 1, Ioctls: 6, Calls: 20}},
		{"Mounts", func() error { _, err := sn.Mounts(ctx, "a"); return err }, trace.Cost{Ioctls: 1, Calls: 5}},
		{"View", func() error { _, err := sn.View(ctx, "v", "layer"); return err }, trace.Cost{Syncs: 2, Transactions: 1, Ioctls: 4, Calls: 17}},
		{"second View", func() error { _, err := sn.View(ctx, "w", "layer"); return err }, trace.Cost{Syncs: 2, Transactions: 1, Ioctls: 1, Calls: 9}},
		{"Stat", func() error { _, err := sn.Stat(ctx, "a"); return err }, trace.Cost{}},
		{"Usage", func() error { _, err := sn.Usage(ctx, "a"); return err }, trace.Cost{Ioctls: 1, Calls: 19}},
		// What these leave to the background begins before they return, and is counted with them: a deactivation after
		// Commit; after Remove a discard, the deletion, and the transaction that clears the trash. One of Commit's is the
		// pool's status, which alone tells whether anything that was written may have been lost. Two more look, once the
		// device refuses writes and after the flush, whether it was opened meanwhile: what is read of its file system
		// holds, and nothing can write to a committed layer.
		{"Commit", func() error { return sn.Commit(ctx, "layer-2", "a") }, trace.Cost{Syncs: 3, Transactions: 1, Ioctls: 8, Calls: 47}},
		{"Remove of a View", func() error { return sn.Remove(ctx, "v") }, trace.Cost{Syncs: 2, Transactions: 1, Ioctls: 1, Calls: 9}},
		{"Remove", func() error { return sn.Remove(ctx, "layer-2") }, trace.Cost{Syncs: 4, Transactions: 2, Ioctls: 9, Calls: 40}},
	})
}

// TestCostsWithASpare counts what is left of a Prepare for which there is one.
func TestCostsWithASpare(t *testing.T) {
	ctx, daemon, sn := clientWith(t, harness.Options{Filesystem: "ext4", BaseSize: filesystems["ext4"], NoAutoextend: true})
	_, err := sn.Prepare(ctx, "first", "")
	require.NoError(t, err)
	require.NoError(t, sn.Commit(ctx, "layer", "first"))
	costs(t, daemon, []step{
		{"Prepare", func() error { _, err := sn.Prepare(ctx, "a", "layer"); return err }, trace.Cost{Syncs: 2, Transactions: 1, Ioctls: 1, Calls: 12}},
	})
	require.EqualValues(t, 1, daemon.Info(t).Spares.Hits)
}

// TestCostsOfGrowing counts what the watch for a pool that gets full adds: when the
// kernel tells of something, a look, and a wait for more. Once a second at most, so
// that what is done in that second has it together.
func TestCostsOfGrowing(t *testing.T) {
	ctx, daemon, sn := clientWith(t, harness.Options{Filesystem: "ext4", BaseSize: filesystems["ext4"], NoSpares: true})
	_, err := sn.Prepare(ctx, "first", "")
	require.NoError(t, err)
	require.NoError(t, sn.Commit(ctx, "layer", "first"))
	trace.Settle(t, daemon.PID())
	got, watched := count(t, daemon, func() error { _, err := sn.Prepare(ctx, "a", "layer"); return err })
	t.Logf("Prepare: %v, %d looks at most", got, watched)
	require.LessOrEqual(t, got.Ioctls, 6+2*watched)
	require.Equal(t, trace.Cost{Syncs: 2, Transactions: 1, Ioctls: got.Ioctls, Looks: got.Looks, Calls: got.Calls}, got)
	// Devices of earlier tests that are removed meanwhile raise events, too.
	trace.Settle(t, daemon.PID())
	got, watched = count(t, daemon, func() error { time.Sleep(3 * time.Second); return nil })
	t.Logf("nothing: %v", got)
	require.LessOrEqual(t, got.Ioctls-2*got.Looks, watched)
	require.Equal(t, trace.Cost{Ioctls: got.Ioctls, Looks: got.Looks, Calls: got.Calls}, got)
}

type step struct {
	name string
	op   func() error
	most trace.Cost
}

// costs holds that no step costs more than its most.
func costs(t *testing.T, daemon *harnesstest.Thinsnap, steps []step) {
	t.Helper()
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			trace.Settle(t, daemon.PID())
			got, watched := count(t, daemon, step.op)
			t.Logf("%s: %v, %d of the watch at most", step.name, got, watched)
			require.Zero(t, got.Programs)
			require.LessOrEqual(t, got.Syncs, step.most.Syncs)
			require.LessOrEqual(t, got.Transactions, step.most.Transactions)
			require.LessOrEqual(t, got.Ioctls-2*got.Looks, step.most.Ioctls+watched)
			require.LessOrEqual(t, got.Calls-2*got.Looks, step.most.Calls+watched)
		})
	}
}

// count also returns how many ioctls of the watch are among them at most. A pool as small as these
// fills up in seconds: thinsnap reads its status once a second, so that it knows when it was full.
func count(t *testing.T, daemon *harnesstest.Thinsnap, op func() error) (got trace.Cost, watched int) {
	t.Helper()
	began := time.Now()
	got = trace.Count(t, daemon.PID(), op)
	return got, 1 + int(time.Since(began)/time.Second)
}
