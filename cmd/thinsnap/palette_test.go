package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/admin"
)

func TestColoursAreForTerminals(t *testing.T) {
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	require.True(t, bool(colours(true)))
	require.False(t, bool(colours(false)))
	t.Setenv("NO_COLOR", "1")
	require.False(t, bool(colours(true)))
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "dumb")
	require.False(t, bool(colours(true)))
}

func TestPalette(t *testing.T) {
	require.Equal(t, "\x1b[32mrw\x1b[0m", palette(true).state(&admin.Pool{State: admin.StateReadWrite}))
	require.Equal(t, "\x1b[31mrw, needs_check\x1b[0m", palette(true).state(&admin.Pool{State: admin.StateReadWrite, NeedsCheck: true}))
	require.Equal(t, "\x1b[31mfail\x1b[0m", palette(true).state(&admin.Pool{State: admin.StateFailed}))
	require.Equal(t, "fail", palette(false).state(&admin.Pool{State: admin.StateFailed}))
	require.Equal(t, "\x1b[33m90%\x1b[0m", palette(true).level(admin.LevelLow, "90%"))
	require.Equal(t, "\x1b[31m99%\x1b[0m", palette(true).level(admin.LevelShort, "99%"))
}

func TestClip(t *testing.T) {
	coloured := "ab" + palette(true).red("çdé") + "f"
	require.Equal(t, 6, width(coloured))
	require.Equal(t, coloured, clip(coloured, 6))
	require.Equal(t, "ab\x1b[31mçd…\x1b[0m", clip(coloured, 5))
	require.Equal(t, "…\x1b[31m\x1b[0m", clip("x"+palette(true).red("yz"), 1))
	require.Zero(t, width(clip(coloured, 0)))
}

// TestColouredTables: colours do not change the columns, and keys cannot add colours.
func TestColouredTables(t *testing.T) {
	address := fakeDaemon(t)
	for _, command := range []string{"ls", "tree", "info"} {
		coloured := outputOf(t, true, true, "--admin-address", address, command)
		require.Contains(t, coloured, "\x1b[", command)
		require.Equal(t, output(t, true, "--admin-address", address, command), codes.ReplaceAllString(coloured, ""))
		require.NotContains(t, outputOf(t, true, true, "--admin-address", address, command, "--json"), "\x1b", "for scripts")
	}
	require.Equal(t, `"\x1b[31mred"`, printable("\x1b[31mred"))
}
