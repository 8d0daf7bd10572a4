package snapshotter_test

import (
	"context"
	"encoding/binary"
	"os"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// backup copies the store as a disk backup does. restore puts the copy back and starts with it; the pool is
// unchanged.
func (b *bench) backup(t *testing.T) (restore func() error) {
	t.Helper()
	copied, err := os.ReadFile(b.path)
	require.NoError(t, err)
	return func() error {
		require.NoError(t, b.Close())
		require.NoError(t, b.store.Close()) // after a refused start
		require.NoError(t, os.WriteFile(b.path, copied, 0o600))
		b.openStore(t)
		return b.start(t)
	}
}

func (b *bench) leftovers(t *testing.T) (ids []thin.ID) {
	t.Helper()
	kept, err := b.Leftovers(t.Context())
	require.NoError(t, err)
	for _, k := range kept {
		require.Positive(t, k.Mapped)
		require.GreaterOrEqual(t, k.Size, k.Mapped)
		require.NotZero(t, k.Found)
		ids = append(ids, thin.ID(k.VolumeID))
	}
	return ids
}

// TestOlderStoreWithinALease: a store that is older than the pool by less than a lease, and lacks no
// Commit, is not detected. Volumes that a client wrote to since, and their origins, are kept; others are
// deleted as leftovers of a crash. A foreign pool has no stamp, so there even a store that lacks a Commit
// is accepted.
func TestOlderStoreWithinALease(t *testing.T) {
	for _, foreign := range []bool{false, true} {
		config := fakeConfig()
		config.Spares = 0
		var b *bench
		if foreign {
			b = newExistingBench(t)
			b.config = config
			require.NoError(t, b.start(t))
		} else {
			b = newBench(t, config)
		}
		b.layer(t, "old", "", "old")
		require.NoError(t, b.Cleanup(t.Context()))
		restore := b.backup(t)
		parent := "old"
		var want []thin.ID
		if foreign {
			parent = "empty layer"
			b.layer(t, "new", "old", "acknowledged")
			b.prepare(t, "empty", "new")
			require.NoError(t, b.Commit(t.Context(), "empty layer", "empty"))
			want = []thin.ID{b.volume(t, "new"), b.volume(t, "empty layer")}
		}
		require.NoError(t, b.pool.Write(b.prepare(t, "box", parent), "of the container"))
		want = append(want, b.volume(t, "box"))
		b.prepare(t, "idle", parent)
		idle := b.volume(t, "idle")
		if foreign {
			want = append(want, idle) // its origin is not in the store: it may be foreign
		}
		require.NoError(t, b.Cleanup(t.Context()))
		require.NoError(t, restore())
		require.NoError(t, b.Cleanup(t.Context()))
		require.Equal(t, want, b.leftovers(t))
		for _, id := range want {
			require.True(t, b.pool.IDs()[id], "volume %d", id)
		}
		require.Equal(t, foreign, b.pool.IDs()[idle])

		// The next start does not read the kept ones again.
		looks := b.pool.Calls()["Writes"]
		b.restart(t, true)
		require.NoError(t, b.Cleanup(t.Context()))
		require.Equal(t, looks, b.pool.Calls()["Writes"])
		require.Equal(t, want, b.leftovers(t))
		b.layer(t, "new", "old", "again")

		require.ErrorIs(t, b.RemoveLeftover(t.Context(), b.volume(t, "new")), errdefs.ErrNotFound)
		if !foreign {
			require.ErrorIs(t, b.RemoveLeftover(t.Context(), idle), errdefs.ErrNotFound)
		}
		for _, id := range want {
			require.NoError(t, b.RemoveLeftover(t.Context(), id))
			require.ErrorIs(t, b.RemoveLeftover(t.Context(), id), errdefs.ErrNotFound)
		}
		require.Empty(t, b.leftovers(t))
		require.Equal(t, "again", b.content(t, "new"))
		if foreign {
			require.NoError(t, b.Cleanup(t.Context()))
			require.Len(t, b.pool.IDs(), b.owned(t)+1)
			b.requireAsItWas(t)
			require.NoError(t, b.Close())
			continue
		}
		b.requireNoLeftovers(t)
	}
}

// TestOlderStoreWhileContainersRun: a leftover in use is checked after its use, including the content
// written until then.
func TestOlderStoreWhileContainersRun(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0
	b := newBench(t, config)
	b.layer(t, "old", "", "old")
	require.NoError(t, b.Cleanup(t.Context()))
	restore := b.backup(t)
	dev := b.prepare(t, "box", "old")
	id := b.volume(t, "box")
	require.NoError(t, b.pool.Open(dev, 1))
	require.NoError(t, restore())
	require.NoError(t, b.Cleanup(t.Context()))
	require.Empty(t, b.leftovers(t))
	require.NoError(t, b.pool.Write(dev, "of the container"))
	require.NoError(t, b.pool.Open(dev, -1))
	b.during("Writes", func() error { return unix.EIO })
	require.NoError(t, b.Cleanup(t.Context()))
	require.Empty(t, b.leftovers(t), "it is unknown whether it was written to")
	require.True(t, b.pool.IDs()[id])
	require.NoError(t, b.Cleanup(t.Context()))
	require.Equal(t, []thin.ID{id}, b.leftovers(t))
}

// TestOlderStoreWithoutACommit: each Commit has its own transaction id. A store in which the layer is still
// an active snapshot is refused, whenever it was copied: containerd's collector would remove that key, and
// with it the layer's volume. A newer copy is accepted.
func TestOlderStoreWithoutACommit(t *testing.T) {
	for key, copied := range map[string][]string{
		unpackKey:     {"", "Flush", "SetReadOnly", "Usage"},
		"box":         {"", "Flush", "SetReadOnly", "Usage"},
		"box, in use": {"", "Suspend", "CreateSnap", "Activate", "Usage"},
	} {
		for _, during := range copied {
			t.Run(key+" "+during, func(t *testing.T) {
				config := fakeConfig()
				config.Spares = 0
				b := newBench(t, config)
				b.layer(t, "old", "", "old")
				dev := b.prepare(t, key, "old")
				require.NoError(t, b.pool.Write(dev, "acknowledged"))
				if key == "box, in use" {
					require.NoError(t, b.pool.Open(dev, 1))
					// Takes a lease first.
					require.NoError(t, b.Commit(t.Context(), "earlier", b.inUse(t)))
				}
				require.NoError(t, b.Cleanup(t.Context()))
				older := b.backup(t)
				if during != "" {
					b.during(during, func() error { older = b.backup(t); return nil })
				}
				require.NoError(t, b.Commit(t.Context(), "new", key))
				require.NoError(t, b.pool.Write(b.prepare(t, "container", "new"), "of the container"))
				newer := b.backup(t)

				err := older()
				require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
				require.ErrorContains(t, err, "transaction id")
				require.NoError(t, newer())
				require.NoError(t, b.Cleanup(t.Context()))
				require.Empty(t, b.leftovers(t))
				require.Equal(t, "acknowledged", b.content(t, "new"))
			})
		}
	}
}

// inUse prepares a snapshot in use, and returns its key.
func (b *bench) inUse(t *testing.T) string {
	t.Helper()
	require.NoError(t, b.pool.Open(b.prepare(t, "in use", "old"), 1))
	return "in use"
}

// TestOlderStoreWithoutWhatThinsnapWrote: the record of a volume that thinsnap wrote to first has its own
// transaction id. A store without the record is refused, whenever it was copied.
func TestOlderStoreWithoutWhatThinsnapWrote(t *testing.T) {
	for name, c := range map[string]struct {
		create func(b *bench) error
		// copied are the calls to the pool during which the store is copied.
		copied []string
	}{
		"larger than its parent": {func(b *bench) error {
			return second(b.Prepare(t.Context(), "a", "layer", labels(snapshotter.LabelSize, "128MiB")))
		}, []string{"", "CreateSnap", "Activate", "Grow"}},
		"copy of a volume in use": {func(b *bench) error {
			return b.Commit(t.Context(), "a", "box")
		}, []string{"", "CreateSnap", "Activate", "Flush"}},
		"fork": {func(b *bench) error {
			return second(b.Prepare(t.Context(), "a", "layer", b.issue(t, "box")))
		}, []string{"", "CreateSnap", "Activate"}},
		"base volume": {func(b *bench) error {
			return second(b.Prepare(t.Context(), "a", "", labels(snapshotter.LabelSize, "32MiB")))
		}, []string{"", "CreateThin", "Activate", "Make"}},
	} {
		for _, before := range c.copied {
			t.Run(name+" "+before, func(t *testing.T) {
				config := fakeConfig()
				config.Spares, config.MaxBytes = 0, 256<<20
				b := newBench(t, config)
				b.layer(t, "layer", "", "content")
				box := b.prepare(t, "box", "layer")
				require.NoError(t, b.pool.Open(box, 1))
				require.NoError(t, b.Cleanup(t.Context()))
				restore := b.backup(t)
				b.during(before, func() error { restore = b.backup(t); return nil })
				require.NoError(t, c.create(b))
				require.NoError(t, b.Cleanup(t.Context()))
				restored := restore()
				require.ErrorIs(t, restored, errdefs.ErrFailedPrecondition)
				require.ErrorContains(t, restored, "transaction id")
				b.mismatched = true
			})
		}
	}
}

// TestCrashAfterThinsnapWrote: after a crash, a volume that thinsnap wrote to before a record owned it is
// deleted with its content. In a foreign pool, which has no stamp, it is kept.
func TestCrashAfterThinsnapWrote(t *testing.T) {
	for _, foreign := range []bool{false, true} {
		config := fakeConfig()
		config.Spares, config.MaxBytes = 0, 256<<20
		var b *bench
		if !foreign {
			b = newBench(t, config)
		} else {
			b = newExistingBench(t)
			b.config = config
			require.NoError(t, b.start(t))
		}
		b.layer(t, "layer", "", "content")
		require.NoError(t, b.Cleanup(t.Context()))
		b.pool.SetFault(func(method string, _ thin.ID) error {
			if method == "Grow" {
				return b.store.Close()
			}
			return nil
		})
		_, err := b.Prepare(t.Context(), "a", "layer", labels(snapshotter.LabelSize, "128MiB"))
		require.ErrorIs(t, err, metadata.ErrClosed)
		b.pool.SetFault(func(string, thin.ID) error { return nil })
		b.restart(t, true)
		require.NoError(t, b.Cleanup(t.Context()))
		if foreign {
			require.Len(t, b.leftovers(t), 1)
			require.NoError(t, b.RemoveLeftover(t.Context(), b.leftovers(t)[0]))
		}
		require.Empty(t, b.leftovers(t))
		if !foreign {
			b.requireNoLeftovers(t)
			continue
		}
		b.requireAsItWas(t)
		require.NoError(t, b.Close())
	}
}

// TestPoolIsStampedBeforeTheAnswer: if the pool refuses the stamp of a record, the record is removed again.
// For a record that a crash left, the next start stamps the pool before it answers.
func TestPoolIsStampedBeforeTheAnswer(t *testing.T) {
	config := fakeConfig()
	config.Spares, config.MaxBytes = 0, 256<<20
	b := newBench(t, config)
	b.layer(t, "layer", "", "content")
	larger := func() error {
		return second(b.Prepare(t.Context(), "a", "layer", labels(snapshotter.LabelSize, "128MiB")))
	}
	require.NoError(t, larger()) // takes a lease first
	require.NoError(t, b.Remove(t.Context(), "a"))
	for range 3 {
		b.during("SetTransactionID", func() error { return unix.EIO })
		require.Error(t, larger())
		require.ErrorIs(t, second(b.Stat(t.Context(), "a")), errdefs.ErrNotFound)
	}
	require.NoError(t, larger(), "the key is free")
	b.requireNoLeftovers(t)

	// As after a crash between the record and the stamp.
	require.NoError(t, b.store.Update(t.Context(), func(tx *metadata.Tx) error {
		pool, err := tx.Pool()
		if err == nil {
			pool.TransactionID++
			err = tx.SetPool(pool)
		}
		return err
	}))
	b.restart(t, true)
	pool, err := b.store.Pool(context.Background())
	require.NoError(t, err)
	status, err := b.pool.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, pool.TransactionID, status.TransactionID)
}

// TestCommitInAPoolThatTakesNoStamp: a Commit is refused in a pool that takes no changes. If the pool stops
// taking them during a Commit, the layer stays. The pool is stamped as soon as it takes changes, or at the
// next start.
func TestCommitInAPoolThatTakesNoStamp(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0
	b := newBench(t, config)
	b.layer(t, "old", "", "old")
	require.NoError(t, b.pool.Write(b.prepare(t, "a", "old"), "content"))
	b.during("Usage", func() error { b.setMode(thin.ModeReadOnly); return nil })
	require.ErrorIs(t, b.Commit(t.Context(), "new", "a"), errdefs.ErrUnavailable)
	require.ErrorIs(t, second(b.Stat(t.Context(), "new")), errdefs.ErrNotFound)
	b.setMode(thin.ModeReadWrite)

	stamped := func() bool {
		rec, err := b.store.Pool(t.Context())
		require.NoError(t, err)
		status, err := b.pool.Status(t.Context())
		require.NoError(t, err)
		return status.TransactionID == rec.TransactionID
	}
	refuseStamps := func(err error) {
		b.pool.SetFault(func(method string, _ thin.ID) error {
			if method == "SetTransactionID" {
				return err
			}
			return nil
		})
	}
	refuseStamps(unix.EIO)
	older := b.backup(t)
	require.NoError(t, b.Commit(t.Context(), "new", "a"))
	require.False(t, stamped())
	require.Equal(t, "content", b.content(t, "new"))
	refuseStamps(nil)
	require.Eventually(t, stamped, 10*time.Second, 10*time.Millisecond)

	b.prepare(t, "b", "new")
	refuseStamps(unix.EIO)
	require.NoError(t, b.Commit(t.Context(), "newer", "b"))
	b.restart(t, true)
	require.False(t, stamped())
	refuseStamps(nil)
	require.Eventually(t, stamped, 10*time.Second, 10*time.Millisecond)
	require.ErrorIs(t, older(), errdefs.ErrFailedPrecondition)
	b.mismatched = true
}

// TestNewestMetaPageIsDamaged: bbolt uses the previous meta page, and the last transaction is lost. Content
// written to a snapshot of that transaction is kept.
func TestNewestMetaPageIsDamaged(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0
	b := newBench(t, config)
	b.layer(t, "layer", "", "content")
	require.NoError(t, b.Cleanup(t.Context()))
	dev := b.prepare(t, "box", "layer")
	id := b.volume(t, "box")
	require.NoError(t, b.pool.Write(dev, "of the container"))
	require.NoError(t, b.Close())
	file, err := os.ReadFile(b.path)
	require.NoError(t, err)
	const page, txid, checksum = 4096, 64, 72 // of bbolt's meta
	newest := 0
	if binary.LittleEndian.Uint64(file[page+txid:]) > binary.LittleEndian.Uint64(file[txid:]) {
		newest = page
	}
	file[newest+checksum]++
	require.NoError(t, os.WriteFile(b.path, file, 0o600))
	b.openStore(t)
	require.NoError(t, b.start(t))
	require.ErrorIs(t, second(b.Stat(t.Context(), "box")), errdefs.ErrNotFound)
	require.NoError(t, b.Cleanup(t.Context()))
	require.Equal(t, []thin.ID{id}, b.leftovers(t))
}
