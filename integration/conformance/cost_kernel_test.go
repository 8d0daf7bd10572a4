package conformance

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/trace"
)

// TestCosts counts, with strace, what each operation costs: on its way no program
// is executed, and bbolt commits one transaction, which is two fdatasyncs; Commit
// has one fsync more, of the device. The background has had its time before and
// after each of them, so that what it does is not counted.
func TestCosts(t *testing.T) {
	ctx, daemon, sn := client(t, "ext4")
	_, err := sn.Prepare(ctx, "first", "")
	require.NoError(t, err)
	require.NoError(t, sn.Commit(ctx, "layer", "first"))

	for _, step := range []struct {
		name string
		op   func() error
		want trace.Cost
	}{
		{"Prepare", func() error { _, err := sn.Prepare(ctx, "a", "layer"); return err }, trace.Cost{Syncs: 2, Transactions: 1, Ioctls: 6}},
		{"Mounts", func() error { _, err := sn.Mounts(ctx, "a"); return err }, trace.Cost{Ioctls: 1}},
		{"View", func() error { _, err := sn.View(ctx, "v", "layer"); return err }, trace.Cost{Syncs: 2, Transactions: 1, Ioctls: 4}},
		{"second View", func() error { _, err := sn.View(ctx, "w", "layer"); return err }, trace.Cost{Syncs: 2, Transactions: 1, Ioctls: 1}},
		{"Stat", func() error { _, err := sn.Stat(ctx, "a"); return err }, trace.Cost{}},
		{"Usage", func() error { _, err := sn.Usage(ctx, "a"); return err }, trace.Cost{Ioctls: 1}},
	} {
		t.Run(step.name, func(t *testing.T) {
			trace.Settle(t, daemon.PID())
			got := trace.Count(t, daemon.PID(), step.op)
			t.Logf("%s: %v", step.name, got)
			require.Equal(t, step.want, got)
		})
	}
	// What these two leave to the background begins before they return, and is counted with them: a deactivation after
	// Commit; after Remove a discard, the deletion, and the transaction that clears the trash.
	for _, step := range []struct {
		name string
		op   func() error
		most trace.Cost
	}{
		{"Commit", func() error { return sn.Commit(ctx, "layer-2", "a") }, trace.Cost{Syncs: 3, Transactions: 1, Ioctls: 4}},
		{"Remove of a View", func() error { return sn.Remove(ctx, "v") }, trace.Cost{Syncs: 2, Transactions: 1, Ioctls: 1}},
		{"Remove", func() error { return sn.Remove(ctx, "layer-2") }, trace.Cost{Syncs: 4, Transactions: 2, Ioctls: 9}},
	} {
		t.Run(step.name, func(t *testing.T) {
			trace.Settle(t, daemon.PID())
			got := trace.Count(t, daemon.PID(), step.op)
			t.Logf("%s, with its part in the background: %v", step.name, got)
			require.Zero(t, got.Programs)
			require.LessOrEqual(t, got.Syncs, step.most.Syncs)
			require.LessOrEqual(t, got.Transactions, step.most.Transactions)
			require.LessOrEqual(t, got.Ioctls, step.most.Ioctls)
		})
	}
}
