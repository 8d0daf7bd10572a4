package snapshotter_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest/fakepool"
	"github.com/thinsnap/thinsnap/metadata"
)

// setNextID sets the id with which the next lease of a store begins. In a new store that is also the
// least id that is ever leased.
func setNextID(t testing.TB, path string, id uint32) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	defer db.Close()
	require.NoError(t, db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte("v1")).Bucket([]byte("meta")).Put([]byte("next"), []byte{byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)})
	}))
}

// newSmallBench is newBench on a pool with few ids.
func newSmallBench(t *testing.T, ids uint32, mode string) *bench {
	t.Helper()
	b := &bench{pool: fakepool.New(4 << 30), path: filepath.Join(t.TempDir(), "metadata.db"), config: fakeConfig()}
	b.config.Spares = 0
	b.openStore(t)
	require.NoError(t, b.store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.SetPool(metadata.PoolRecord{
			ID: "fake", Mode: mode, Name: "fake", BlockSize: 64 << 10, Complete: true,
			Existing: metadata.ExistingPool{MappedDevice: "fake", UUID: "fake"},
		})
	}))
	require.NoError(t, b.store.Close())
	setNextID(t, b.path, metadata.MaxDevice+1-ids)
	b.openStore(t)
	require.NoError(t, b.start(t))
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// churn creates and removes snapshots of a layer.
func (b *bench) churn(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		require.NoError(t, b.pool.Write(b.prepare(t, "box", "layer"), fmt.Sprint("box ", i)))
		require.NoError(t, b.Remove(t.Context(), "box"))
		require.NoError(t, b.Cleanup(t.Context()))
	}
}

// TestIDsAreUsedAgain: three times as many snapshots as there are ids, beside foreign volumes, a
// leftover that is kept, and after crashes.
func TestIDsAreUsedAgain(t *testing.T) {
	for _, mode := range []string{metadata.ModeLoop, metadata.ModeExisting} {
		t.Run(mode, func(t *testing.T) {
			const ids = 300
			b := newSmallBench(t, ids, mode)
			b.layer(t, "layer", "", "content")
			b.churn(t, 20)
			b.churn(t, ids)
			require.NoError(t, b.Close())
			b.openStore(t)
			foreign := b.freeIDs(t, 5)
			for _, id := range foreign {
				require.NoError(t, b.pool.CreateThin(t.Context(), id))
			}
			require.NoError(t, b.start(t))
			for range 4 {
				b.churn(t, ids/2)
				b.restart(t, true)
			}
			for _, id := range foreign {
				require.Contains(t, b.pool.IDs(), id, "it is not ours")
				require.NoError(t, b.pool.Delete(t.Context(), id))
			}
			require.Equal(t, "content", b.content(t, "layer"))
			require.NoError(t, b.Cleanup(t.Context()))
			require.NoError(t, b.store.View(t.Context(), func(tx *metadata.Tx) error {
				used, left, err := tx.DeviceIDs()
				require.EqualValues(t, ids, used+left)
				require.Less(t, used, uint32(150))
				return err
			}))
			b.requireNoLeftovers(t)
			require.NoError(t, b.Close())
			b.check(t)
		})
	}
}

// freeIDs returns ids that no record owns and no open lease has.
func (b *bench) freeIDs(t *testing.T, n uint32) (ids []thin.ID) {
	t.Helper()
	require.NoError(t, b.store.View(t.Context(), func(tx *metadata.Tx) error {
		first, last, err := tx.FreeAgain(0, n)
		for id := first; id <= last; id++ {
			ids = append(ids, thin.ID(id))
		}
		return err
	}))
	return ids
}

// TestAllIDsInUse: Prepare is refused while each id is in use, and works again when one is free.
func TestAllIDsInUse(t *testing.T) {
	const ids = 200
	b := newSmallBench(t, ids, metadata.ModeLoop)
	b.layer(t, "layer", "", "content")
	for range 3 {
		var err error
		made := 0
		for ; err == nil; made++ {
			_, err = b.Prepare(t.Context(), fmt.Sprint(made), "layer")
		}
		require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
		require.ErrorContains(t, err, "used all its device ids")
		require.Greater(t, made, ids-leasedWritten)
		for i := range made - 1 {
			require.NoError(t, b.Remove(t.Context(), fmt.Sprint(i)))
		}
		require.NoError(t, b.Cleanup(t.Context()))
	}
	b.requireNoLeftovers(t)
}

// leasedWritten is the most ids that are reserved for volumes that thinsnap writes to.
const leasedWritten = 40

// TestReusedIDAfterACrash: a spare with an id that is used again is deleted, although the start knew
// the id as one without a volume.
func TestReusedIDAfterACrash(t *testing.T) {
	b := newSmallBench(t, 200, metadata.ModeLoop)
	b.layer(t, "layer", "", "content")
	b.churn(t, 210)
	b.config.Spares = 4
	b.restart(t, true) // the start looks for the volumes of all open leases
	require.NoError(t, b.Cleanup(t.Context()))
	for range 150 {
		b.layer(t, "upper", "layer", "more") // and a spare of it
		require.NoError(t, b.Remove(t.Context(), "upper"))
		require.NoError(t, b.Cleanup(t.Context()))
	}
	b.requireNoLeftovers(t)
}

// TestPoolOlderThanTheReuse: a copy of the pool that has the former volume of an id is refused.
func TestPoolOlderThanTheReuse(t *testing.T) {
	b := newSmallBench(t, 200, metadata.ModeLoop)
	b.layer(t, "layer", "", "content")
	b.churn(t, 200)
	before := b.transactionID(t)
	b.restart(t, false)
	b.churn(t, 1)
	require.Equal(t, before+2, b.transactionID(t), "the lease of ids that are used again")
	require.NoError(t, b.Close())
	b.openStore(t)
	b.pool.SetStatus(func(s *pool.Status) { s.TransactionID = before })
	require.ErrorIs(t, b.start(t), errdefs.ErrFailedPrecondition)
	b.pool.SetStatus(func(s *pool.Status) { s.TransactionID = before + 2 })
	require.NoError(t, b.start(t))
	// A crash between the steps of a lease.
	for range 2 {
		for _, method := range []string{"Volumes", "SetTransactionID"} {
			for skipped := range 2 {
				b.restart(t, false)
				calls := 0
				b.pool.SetFault(func(m string, _ thin.ID) error {
					if m == method {
						if calls++; calls > skipped {
							return errInjected
						}
					}
					return nil
				})
				_, _ = b.Prepare(t.Context(), "box", "layer")
				b.pool.SetFault(func(string, thin.ID) error { return nil })
				b.restart(t, true)
				_ = b.Remove(t.Context(), "box")
				b.churn(t, 1)
			}
		}
	}
}

func (b *bench) transactionID(t *testing.T) uint64 {
	t.Helper()
	status, err := b.pool.Status(t.Context())
	require.NoError(t, err)
	return status.TransactionID
}

// TestReuseBesideAKeptLeftover: its id stays its own.
func TestReuseBesideAKeptLeftover(t *testing.T) {
	b := newSmallBench(t, 200, metadata.ModeLoop)
	b.layer(t, "layer", "", "content")
	b.prepare(t, "lost", "layer")
	id := b.volume(t, "lost")
	require.NoError(t, b.pool.Write(b.pool.VolumePath(id), "written"))
	require.NoError(t, b.store.Update(t.Context(), func(tx *metadata.Tx) error {
		if _, err := tx.Remove("lost", time.Now()); err != nil {
			return err
		}
		if err := tx.ClearTrash(uint32(id)); err != nil {
			return err
		}
		return tx.Keep(metadata.KeptRecord{VolumeID: uint32(id), Found: time.Now()})
	}))
	b.churn(t, 300)
	kept, err := b.Leftovers(t.Context())
	require.NoError(t, err)
	require.Len(t, kept, 1)
	require.Contains(t, b.pool.IDs(), id)
	require.NoError(t, b.RemoveLeftover(t.Context(), id))
	b.requireNoLeftovers(t)
}
