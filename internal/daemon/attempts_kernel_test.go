package daemon

import (
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// TestFailedAttemptsLeaveNothing: attempts to open a broken pool, repeated for days, leave no open
// files and no goroutines.
func TestFailedAttemptsLeaveNothing(t *testing.T) {
	d, c := newDaemon(t)
	layers(t, d, "one")
	require.NoError(t, d.Close())
	used := func() (files, goroutines int) {
		entries, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(entries), runtime.NumGoroutine()
	}
	fails := func(name string) {
		t.Helper()
		for range 3 {
			_, err := Open(t.Context(), c)
			require.Error(t, err, name)
		}
		files, goroutines := used()
		for range 50 {
			_, err := Open(t.Context(), c)
			require.Error(t, err, name)
		}
		require.EventuallyWithT(t, func(t *assert.CollectT) {
			f, g := used()
			require.LessOrEqual(t, f, files, name)
			require.Less(t, g, goroutines+10, name) // some are EventuallyWithT's
		}, 10*time.Second, 10*time.Millisecond)
	}
	shiftID := func(by uint64) {
		store, err := metadata.Open(rootdir.Store(c.Root), metadata.Options{})
		require.NoError(t, err)
		require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
			rec, err := tx.Pool()
			require.NoError(t, err)
			rec.TransactionID += by
			return tx.SetPool(rec)
		}))
		require.NoError(t, store.Close())
	}
	shiftID(100)
	fails("a store that does not match the pool")
	shiftID(^uint64(99))
	takeOut(t, c)
	data := c.Root + "/pool/data"
	require.NoError(t, os.Rename(data, data+".gone"))
	fails("a pool without its data")
	require.NoError(t, os.Rename(data+".gone", data))
	d, err := Open(t.Context(), c)
	require.NoError(t, err)
	require.NoError(t, d.Close())
}
