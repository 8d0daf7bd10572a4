package adopt

import (
	"testing"

	"github.com/stretchr/testify/require"
)

var all = []string{"default/2/a", "default/4/b", "default/5/c"}

func TestRunAndUndo(t *testing.T) {
	s := newStand(t)
	before := s.state(t)
	steps := s.run(t)
	t.Log(steps)
	s.requireAdopted(t, all...)
	s.undo(t)
	s.requireBack(t, before)
	s.run(t)
	s.requireAdopted(t, all...)
	s.pull(t)
	s.undo(t)
	twin := newStand(t)
	twin.pull(t)
	require.Equal(t, dump(t, newRecord(twin.options()).metaPath()), s.state(t).meta)
}
