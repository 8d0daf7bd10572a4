package daemon

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

func TestPlanOfANameThatIsTaken(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	c := config.Default()
	c.Root, c.Pool.Name = filepath.Join(t.TempDir(), "root"), "plantaken"
	_, err := PlanPool(t.Context(), c)
	require.NoError(t, err)
	control, err := devmapper.Open()
	require.NoError(t, err)
	_, err = control.Create(c.Pool.Name, "OTHER-1")
	require.NoError(t, err)
	defer func() {
		_, err := control.Remove(c.Pool.Name, devmapper.RemoveOptions{})
		require.NoError(t, err)
		require.NoError(t, control.Close())
	}()
	lines, err := PlanPool(t.Context(), c)
	require.Len(t, lines, 2)
	require.ErrorIs(t, err, pool.ErrNameTaken)
	require.NoDirExists(t, c.Root)
}
