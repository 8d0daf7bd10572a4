package snapshotter_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// repair clears the effects of a failed commit on the disk.
func (b *bench) repair() {
	b.pool.SetStatus(func(s *pool.Status) { s.Mode, s.NeedsCheck = thin.ModeReadWrite, false })
}

// TestStampWhoseCommitFails: after a failed commit the kernel reports the transaction id that it could not
// commit. That does not count as a stamp: the store stays at most one ahead of the disk. A pool that takes
// no changes is only asked for its status.
func TestStampWhoseCommitFails(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0
	b := newBench(t, config)
	b.layer(t, "old", "", "old")
	require.NoError(t, b.pool.Write(b.prepare(t, "a", "old"), "content"))
	b.during("SetTransactionID", func() error { return thin.ErrPoolReadOnly })
	require.NoError(t, b.Commit(t.Context(), "new", "a"))
	before := b.pool.Calls()
	require.Eventually(t, func() bool { return b.pool.Calls()["Status"] > before["Status"]+1 }, 30*time.Second, 10*time.Millisecond)
	require.Equal(t, before["SetTransactionID"], b.pool.Calls()["SetTransactionID"], "a message to a pool that takes no changes")

	require.NoError(t, b.Close())
	b.pool.Crash()
	b.repair()
	b.openStore(t)
	require.NoError(t, b.start(t))
	require.Equal(t, "content", b.content(t, "new"))
}

// TestLeaseAfterAStampWhoseCommitFailed: a lease is due after a failed commit.
func TestLeaseAfterAStampWhoseCommitFailed(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0
	b := newBench(t, config)
	b.layer(t, "old", "", "old")
	b.prepare(t, "a", "old")
	b.during("SetTransactionID", func() error {
		for i := range 40 { // less than half of a lease is left
			b.prepare(t, fmt.Sprint("box", i), "old")
		}
		return thin.ErrPoolReadOnly
	})
	require.NoError(t, b.Commit(t.Context(), "new", "a"))
	require.NoError(t, b.Close())
	b.pool.Crash()
	b.repair()
	b.openStore(t)
	require.NoError(t, b.start(t))
	b.prepare(t, "b", "new")
}

// TestStampsThatFail: clients work while stamps fail at random, some of them at their commit. After a crash
// and a repair, thinsnap starts with each acknowledged layer.
func TestStampsThatFail(t *testing.T) {
	config := fakeConfig()
	config.Spares = 2
	b := newBench(t, config)
	b.layer(t, "base", "", "base")
	for round := range 20 {
		var stamps atomic.Int64
		b.pool.SetFault(func(method string, _ thin.ID) error {
			if method != "SetTransactionID" {
				return nil
			}
			stamps.Add(1)
			switch r := rand.IntN(30); {
			case r < 3:
				return unix.EIO
			case r < 5:
				return thin.ErrPoolReadOnly
			}
			return nil
		})
		acknowledged := b.workUntilStamps(t, round, &stamps, 5+rand.Int64N(30))
		require.NoError(t, b.Close())
		b.pool.SetFault(func(string, thin.ID) error { return nil })
		b.pool.Crash()
		b.repair()
		b.openStore(t)
		require.NoError(t, b.start(t), "round %d", round)
		for _, name := range acknowledged {
			require.Equal(t, name, b.content(t, name))
		}
	}
}

// workUntilStamps has clients prepare and commit until most stamps were requested or all clients have
// ended. It returns the acknowledged layers.
func (b *bench) workUntilStamps(t *testing.T, round int, stamps *atomic.Int64, most int64) (acknowledged []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	var work sync.WaitGroup
	for client := range 8 {
		work.Go(func() {
			for i := range 12 {
				if stamps.Load() > most {
					cancel()
				}
				name := fmt.Sprint(round, "-", client, "-", i)
				mounts, err := b.Prepare(ctx, "active "+name, "base")
				if err != nil {
					continue
				}
				device := mounts[0].Source
				if err := b.pool.Write(device, name); err != nil {
					t.Error(err)
				}
				if i%2 == 0 { // the layer is a copy of a volume in use
					if err := b.pool.Open(device, 1); err != nil {
						t.Error(err)
					}
				}
				if b.Commit(ctx, name, "active "+name) == nil {
					mu.Lock()
					acknowledged = append(acknowledged, name)
					mu.Unlock()
				}
				if i%2 == 0 {
					if err := b.pool.Open(device, -1); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	work.Wait()
	return acknowledged
}

// TestCommitOfAVolumeInUseWithoutAStamp: until the stamp, a store without the record would be accepted, and
// its start would delete the copy. So the Commit is not acknowledged. The layer stays, and the pool is
// stamped as soon as it takes changes.
func TestCommitOfAVolumeInUseWithoutAStamp(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0
	b := newBench(t, config)
	b.layer(t, "old", "", "old")
	require.NoError(t, b.Commit(t.Context(), "earlier", b.inUse(t))) // takes a lease first
	device := b.prepare(t, "box", "old")
	require.NoError(t, b.pool.Write(device, "content"))
	require.NoError(t, b.pool.Open(device, 1))
	older := b.backup(t)
	b.during("SetTransactionID", func() error { return unix.EOPNOTSUPP })
	err := b.Commit(t.Context(), "new", "box")
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "is stored")
	require.NoError(t, b.pool.Open(device, -1))
	require.ErrorIs(t, b.Commit(t.Context(), "new", "box"), errdefs.ErrAlreadyExists)
	require.Equal(t, "content", b.content(t, "new"))
	require.Eventually(t, func() bool {
		rec, err := b.store.Pool(t.Context())
		require.NoError(t, err)
		status, err := b.pool.Status(t.Context())
		require.NoError(t, err)
		return status.TransactionID == rec.TransactionID
	}, 30*time.Second, 10*time.Millisecond)
	require.ErrorIs(t, older(), errdefs.ErrFailedPrecondition)
	b.mismatched = true
}
