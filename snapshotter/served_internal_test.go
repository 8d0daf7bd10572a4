package snapshotter

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
)

func TestServedCopyThatIsNotUsed(t *testing.T) {
	var c copies
	start := time.Now()
	require.Zero(t, c.serve(20, 1, start))
	require.Zero(t, c.serve(21, 2, start))
	first := c.servedNow()[1]
	require.False(t, c.noteUse(1, first, false, start.Add(servedIdle-1)))
	require.False(t, c.noteUse(1, first, true, start.Add(servedIdle)))
	require.False(t, c.noteUse(1, first, false, start.Add(2*servedIdle)), "it was used meanwhile")
	used := c.servedNow()[1]
	require.False(t, c.noteUse(1, used, false, start.Add(2*servedIdle-1)))
	require.True(t, c.noteUse(1, used, false, start.Add(2*servedIdle)))
	require.NotContains(t, c.servedNow(), thin.ID(1))

	second := c.servedNow()[2]
	require.EqualValues(t, 21, c.serve(22, 2, start.Add(servedIdle)))
	require.False(t, c.noteUse(2, second, false, start.Add(servedIdle)), "another one has taken its place")
	require.EqualValues(t, 22, c.servedNow()[2].id)
}
