package repair

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestProblems: each report that asks for a repair has a reason.
func TestProblems(t *testing.T) {
	for _, r := range []Report{{Complaints: []string{"bad node"}}, {NeedsCheck: true}, {Lost: 1}} {
		require.False(t, r.Good())
		require.NotEmpty(t, r.problems())
	}
	r := Report{Complaints: []string{"bad node"}, NeedsCheck: true, Lost: 2}
	require.Equal(t, "bad node, it is marked needs_check, 2 lost blocks", r.problems())
}
