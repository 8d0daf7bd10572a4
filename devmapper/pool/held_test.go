package pool

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAwaitSteady(t *testing.T) {
	for name, test := range map[string]struct {
		read func(looks int) (writes uint64, full bool)
		wait time.Duration
	}{
		"writers that wait":    {func(int) (uint64, bool) { return 7, true }, steadyReadings * heldInterval},
		"writers that arrive":  {func(looks int) (uint64, bool) { return uint64(min(looks, 10)), true }, (9 + steadyReadings) * heldInterval},
		"writes that vary":     {func(looks int) (uint64, bool) { return uint64(looks % 2), true }, maxReadings * heldInterval},
		"pool that gets space": {func(looks int) (uint64, bool) { return uint64(looks), looks < 4 }, 3 * heldInterval},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun, looks := time.Now(), 0
				require.NoError(t, awaitSteady(func() (uint64, bool, error) {
					looks++
					writes, full := test.read(looks)
					return writes, full, nil
				}))
				require.Equal(t, test.wait, time.Since(begun))
			})
		})
	}
}

func TestWritesInFlight(t *testing.T) {
	dir := t.TempDir()
	for name, line := range map[string]string{"dm-1": "       3        4\n", "dm-2": "       0       10\n", "dm-3": ""} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name, "inflight"), []byte(line), 0o600))
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "dm-4"), 0o700))
	require.EqualValues(t, 14, writesInFlight(dir))
	require.Zero(t, writesInFlight(filepath.Join(dir, "gone")))
}
