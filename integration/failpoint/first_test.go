package failpoint

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
)

// testFirstStart crashes the daemon while it makes its pool, and `thinsnap pool destroy` while it destroys the pool.
func testFirstStart(t *testing.T, c *coverage) {
	s := newStand(t, "first", harness.Options{NoSpares: true})
	s.start(t)
	c.begin(s.names)
	s.Stop(t)
	destroy := []string{"pool", "destroy", "--yes"}

	output, err := s.TryRun([]string{variable(tell, s.names...)}, destroy...)
	require.NoError(t, err)
	destroying := printedFailpoints(output)
	starting := s.passed(t, func() { require.NoError(t, s.launched(t, variable(tell, s.names...))) })
	s.Stop(t)
	t.Logf("passes %v, and %v during the destruction", starting, destroying)

	for i := range max(len(starting), len(destroying)) {
		failed := false
		if i < len(destroying) {
			t.Run("destroy "+destroying[i], func(t *testing.T) {
				_, err := s.TryRun([]string{variable(crash, destroying[i])}, destroy...)
				// The remains are unusable as a pool, but can be destroyed, as tested below.
				require.ErrorContains(t, err, "killed")
				c.count(destroying[i], true)
			})
		}
		require.NoError(t, s.Destroy())
		require.Empty(t, harnesstest.MappedDevices(t, s.PoolName))
		t.Run("start", func(t *testing.T) {
			defer func() { failed = t.Failed() }()
			if i < len(starting) {
				// Background work may reach the failpoint after the daemon is ready.
				_ = s.launched(t, variable(crash, starting[i]))
				require.True(t, s.crashed())
				s.checkStopped(t)
				c.count(starting[i], true)
				t.Logf("crashed at %s", starting[i])
			}
			s.start(t)
			r := newTrial(t, s, i)
			require.NoError(t, r.cleanup())
			r.checkEmpty()
			require.NoError(t, r.prepare(first, ""))
			r.write(first)
			r.requireFiles(first, first)
			r.removeAll()
			r.checkEmpty()
		})
		s.Stop(t)
		if failed {
			return
		}
	}
}
