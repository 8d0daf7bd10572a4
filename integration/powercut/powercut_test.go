package powercut_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/powercut"
	"github.com/thinsnap/thinsnap/integration/vm"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// requireGuests skips the test if integration/setup.sh has not been run.
func requireGuests(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots guests: -short")
	}
	dmtest.RequireInstalled(t, vm.Installed())
}

func options(t *testing.T, filesystem string) powercut.Options {
	t.Helper()
	o := powercut.Options{
		Repository: "../..", Dir: t.TempDir(), Filesystem: filesystem, Seed: uint64(time.Now().UnixNano()), CPUs: 2, Log: t.Logf,
	}
	t.Logf("seed %d", o.Seed)
	return o
}

// TestPowerCuts repeats `make torture` with few cuts.
func TestPowerCuts(t *testing.T) {
	requireGuests(t)
	lvmCuts := 1 // with thinsnap alone
	if dmtest.Thorough() {
		lvmCuts = 2
	}
	for name, test := range map[string]struct {
		filesystem string
		directLVM  bool
		cuts       int
	}{
		"loop, ext4":      {"ext4", false, 2},
		"direct-lvm, xfs": {"xfs", true, lvmCuts},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, test.filesystem)
			o.DirectLVM = test.directLVM
			sum, err := powercut.Cuts(t.Context(), o, test.cuts)
			require.NoError(t, err)
			t.Logf("%+v", sum)
		})
	}
}

func TestReplayOfWrites(t *testing.T) {
	requireGuests(t)
	sum, err := powercut.Points(t.Context(), options(t, "ext4"), 5)
	require.NoError(t, err)
	t.Logf("%+v", sum)
}
