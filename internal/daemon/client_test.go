package daemon

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/metadata"
)

func TestChildrenFirst(t *testing.T) {
	for range 100 {
		var records []metadata.Snapshot
		for i := range 1 + rand.IntN(20) {
			rec := metadata.Snapshot{Key: fmt.Sprintf("\xffk3s/%d", rand.IntN(1000)*100+i)}
			if i > 0 && rand.IntN(4) > 0 {
				rec.Parent = records[rand.IntN(i)].Key
			}
			records = append(records, rec)
		}
		rand.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
		ordered := childrenFirst(records)
		require.ElementsMatch(t, records, ordered)
		gone := make(map[string]bool)
		for _, rec := range ordered {
			require.False(t, gone[rec.Parent], "removed before its child")
			gone[rec.Key] = true
		}
	}
}
