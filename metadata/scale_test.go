package metadata

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// The pages of a transaction grow with the depth of the trees, not with the number of snapshots.
func TestPagesWritten(t *testing.T) {
	few, many := pagesOfCreate(t, 1_000), pagesOfCreate(t, 20_000)
	require.LessOrEqual(t, many, few+3, "a level more for each of three trees")
}

// pagesOfCreate returns the maximum number of pages written to store one container among n
// snapshots.
func pagesOfCreate(t *testing.T, n int) int64 {
	t.Helper()
	s := newStore(t, Options{})
	fill(t, s, n)
	var lease LeaseRecord
	update(t, s, func(tx *Tx) {
		var err error
		lease, err = tx.Lease(20)
		require.NoError(t, err)
	})
	var most int64
	s.commitTx = func(btx *bolt.Tx) error {
		err := btx.Commit()
		stats := btx.Stats()
		most = max(most, stats.GetPageCount())
		return err
	}
	for id := lease.First; id <= lease.Last; id++ {
		image := int(id-lease.First) * (n / 12) / 20
		update(t, s, func(tx *Tx) {
			require.NoError(t, tx.Create(active(fmt.Sprintf("default/%d/new", id), chainID(image*12+9), id)))
		})
	}
	return most
}
