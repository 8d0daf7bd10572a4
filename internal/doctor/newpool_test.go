package doctor

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/internal/config"
)

// TestRemediesThatKeepData: no remedy has the operator replace a pool, or remove a group, that may be needed.
func TestRemediesThatKeepData(t *testing.T) {
	b := newBench(t)
	c := config.Default()
	c.Pool.Mode = config.ModeDirectLVM
	remedy := func(complete bool, err error) string {
		return strings.Join(b.planRemedy(c, complete, fmt.Errorf("pool: %w", err)), "\n")
	}
	missing := remedy(true, pool.ErrWrongPool)
	require.Contains(t, missing, "pvs\nlsblk ")
	require.Contains(t, missing, "# attach the pool's disk, and leave pool.direct_lvm.device as it is")
	require.NotContains(t, missing, "sudoedit")
	require.Contains(t, remedy(false, pool.ErrDeviceTaken), "sudoedit")
	require.Contains(t, remedy(false, pool.ErrGroupTaken), "if the group's data is not needed")
}
