package snapshotter_test

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/faulty"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// stampHook calls onStamp once, at the next SetTransactionID, and counts the calls of that method from then
// on.
type stampHook struct {
	snapshotter.Pool
	onStamp func()
	calls   atomic.Int64
}

func (p *stampHook) SetTransactionID(ctx context.Context, from, to uint64) error {
	if onStamp := p.onStamp; onStamp != nil {
		p.onStamp = nil
		onStamp()
		p.calls.Store(0)
	}
	p.calls.Add(1)
	return p.Pool.SetTransactionID(ctx, from, to)
}

// TestKernelStampWhoseCommitFails: the disk below the pool's metadata fails at the commit of a Commit's
// stamp, while a lease is due. The kernel's status then has an id that is not on the disk. thinsnap starts
// again after the disk is healthy and the metadata was checked.
func TestKernelStampWhoseCommitFails(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	disk := faulty.New(t, 16<<20)
	dir := disk.Mount(t, false)
	file := filepath.Join(dir, "metadata")
	zeroFile(t, file, 4<<20)
	ctx, h := newFaultHost(t, places{metadata: dir}, faultConfig(), 64<<20, 4<<20)
	h.layer(ctx, t, "other", "", "other", 4<<20)
	require.NoError(t, h.Close())
	p := &stampHook{}
	h.wrap = func(inner snapshotter.Pool) snapshotter.Pool { p.Pool = inner; return p }
	require.NoError(t, h.open(ctx, faultConfig()))
	require.NoError(t, h.prepare(ctx, "before", "other"))
	p.onStamp = func() {
		for i := range 40 { // less than half of a lease is left
			require.NoError(t, h.prepare(ctx, fmt.Sprint("box", i), "other"))
		}
		disk.FailWrites(t)
	}
	require.NoError(t, h.Commit(ctx, "new", "before"))
	h.repairPool(ctx, t, func() { // waits for the lease
		disk.Heal(t)
		disk.Remount(t, dir)
	}, clearNeedsCheck(file))
	require.EqualValues(t, 2, p.calls.Load(), "the stamp that failed, and that of the start")
	require.NoError(t, h.prepare(ctx, "box", "new"))
	h.requireContent(ctx, t, "other", "other", 4<<20)
}

// TestKernelTransactionIDByHand: docs/troubleshooting.md has these commands for a store that an earlier
// version left two transaction ids ahead of the pool.
func TestKernelTransactionIDByHand(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	// The programs use O_DIRECT, which a tmpfs does not support before Linux 6.6.
	dir := faulty.New(t, 64<<20).Mount(t, false)
	ctx, h := newFaultHost(t, places{metadata: dir}, faultConfig(), 64<<20, 4<<20)
	h.layer(ctx, t, "layer", "", "layer", 4<<20)
	require.NoError(t, h.Cleanup(ctx))
	var rec metadata.PoolRecord
	require.NoError(t, h.store.Update(ctx, func(tx *metadata.Tx) (err error) {
		if rec, err = tx.Pool(); err != nil {
			return err
		}
		rec.TransactionID += 2
		return tx.SetPool(rec)
	}))
	before := rec.TransactionID - 2
	require.NoError(t, h.Close())
	require.ErrorContains(t, h.open(ctx, faultConfig()), "does not match the store")
	require.NoError(t, h.store.Close())
	require.NoError(t, h.pool.Close(ctx))
	for _, command := range []string{
		"cp metadata metadata.before",
		"thin_check --clear-needs-check-flag metadata",
		"thin_dump metadata > metadata.xml",
		fmt.Sprintf(`sed -i '1s/transaction="%d"/transaction="%d"/' metadata.xml`, before, rec.TransactionID),
		"thin_restore -i metadata.xml -o metadata",
	} {
		c := exec.Command("sh", "-c", command)
		c.Dir = dir
		out, err := c.CombinedOutput()
		require.NoError(t, err, "%s: %s", command, out)
	}
	require.NoError(t, h.open(ctx, faultConfig()))
	require.NoError(t, h.prepare(ctx, "box", "layer"))
	h.requireContent(ctx, t, "layer", "layer", 4<<20)
}
