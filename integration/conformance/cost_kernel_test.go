package conformance

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/integration/trace"
)

// TestCosts counts, with strace, the costs of each operation when nothing was made ahead and the pool does not grow. No
// operation executes a program. A transaction of bbolt has two fdatasyncs; Commit also fsyncs the device, and stamps
// the pool.
//
// The daemon is idle before each operation, and the watch for events, at most once a second, does not count.
// [trace.Cost] says which system calls count; a transaction has up to eight.
func TestCosts(t *testing.T) {
	ctx, daemon, sn := clientWith(t, harness.Options{Filesystem: "ext4", BaseSize: filesystems["ext4"], NoSpares: true, NoAutoextend: true})
	_, err := sn.Prepare(ctx, "first", "")
	require.NoError(t, err)
	require.NoError(t, sn.Commit(ctx, "layer", "first"))

	costs(t, daemon, []step{
		// One ioctl, the pool's status, is needed only if the last status is over a second old.
		{"Prepare", func() error { _, err := sn.Prepare(ctx, "a", "layer"); return err }, trace.Cost{Syncs: 2, Transactions: 1, Ioctls: 6, Calls: 20}},
		{"Mounts", func() error { _, err := sn.Mounts(ctx, "a"); return err }, trace.Cost{Ioctls: 1, Calls: 5}},
		{"View", func() error { _, err := sn.View(ctx, "v", "layer"); return err }, trace.Cost{Syncs: 2, Transactions: 1, Ioctls: 4, Calls: 17}},
		{"second View", func() error { _, err := sn.View(ctx, "w", "layer"); return err }, trace.Cost{Syncs: 2, Transactions: 1, Ioctls: 1, Calls: 9}},
		{"Stat", func() error { _, err := sn.Stat(ctx, "a"); return err }, trace.Cost{}},
		{"Usage", func() error { _, err := sn.Usage(ctx, "a"); return err }, trace.Cost{Ioctls: 1, Calls: 19}},
		// The background work of these operations begins before they return, and is counted: a deactivation after
		// Commit; after Remove a discard, the deletion, and the transaction that clears the trash.
		//
		// One ioctl of Commit is the pool's status, which alone shows whether written data may have been lost. Two more
		// check, once the device refuses writes and after the flush, whether it was opened meanwhile: if not, the file
		// system as read is final, and nothing can write to the committed layer.
		{"Commit", func() error { return sn.Commit(ctx, "layer-2", "a") }, trace.Cost{Syncs: 3, Transactions: 1, Ioctls: 8, Calls: 47}},
		{"Remove of a View", func() error { return sn.Remove(ctx, "v") }, trace.Cost{Syncs: 2, Transactions: 1, Ioctls: 1, Calls: 9}},
		{"Remove", func() error { return sn.Remove(ctx, "layer-2") }, trace.Cost{Syncs: 4, Transactions: 2, Ioctls: 9, Calls: 40}},
	})
}

// TestCostsWithASpare counts the costs of a Prepare that uses a spare.
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

// TestCostsOfGrowing counts the costs of watching a pool that gets full. Each event of the kernel costs a look at the
// pool and a wait for the next event, at most once a second. All operations in that second share them.
func TestCostsOfGrowing(t *testing.T) {
	ctx, daemon, sn := clientWith(t, harness.Options{Filesystem: "ext4", BaseSize: filesystems["ext4"], NoSpares: true})
	_, err := sn.Prepare(ctx, "first", "")
	require.NoError(t, err)
	require.NoError(t, sn.Commit(ctx, "layer", "first"))
	trace.AwaitIdle(t, daemon.PID())
	got, watched := count(t, daemon, func() error { _, err := sn.Prepare(ctx, "a", "layer"); return err })
	t.Logf("Prepare: %v, %d looks at most", got, watched)
	require.LessOrEqual(t, got.Ioctls, 6+2*watched)
	require.Equal(t, trace.Cost{Syncs: 2, Transactions: 1, Ioctls: got.Ioctls, Looks: got.Looks, Calls: got.Calls}, got)
	// Devices of earlier tests that are being removed raise events, too.
	trace.AwaitIdle(t, daemon.PID())
	got, watched = count(t, daemon, func() error { time.Sleep(3 * time.Second); return nil })
	t.Logf("idle: %v", got)
	require.LessOrEqual(t, got.Ioctls-2*got.Looks, watched)
	require.Equal(t, trace.Cost{Ioctls: got.Ioctls, Looks: got.Looks, Calls: got.Calls}, got)
}

type step struct {
	name string
	op   func() error
	most trace.Cost
}

// costs requires that no step exceeds its maximum.
func costs(t *testing.T, daemon *harnesstest.Thinsnap, steps []step) {
	t.Helper()
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			trace.AwaitIdle(t, daemon.PID())
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

// count returns the cost, and how many of its ioctls the watch can have called. A pool as small as these fills in
// seconds, so thinsnap reads its status once a second, to know the time when it was full.
func count(t *testing.T, daemon *harnesstest.Thinsnap, op func() error) (got trace.Cost, watched int) {
	t.Helper()
	began := time.Now()
	got = trace.Count(t, daemon.PID(), op)
	return got, 1 + int(time.Since(began)/time.Second)
}
