package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
)

func TestCheckOfRunningDaemon(t *testing.T) {
	address := fakeDaemon(t)
	got := try(t, false, backend{}, "check", "--admin-address", address)
	require.Equal(t, result{exitFailure, `problem: loop device /dev/loop7: uses the pool's file /var/lib/thinsnap/pool/data, but is not one of the pool's loop devices
    --repair would detach it
problem: snapshot "` + layerKey + `": its volume 1 is not in the pool
pending: removed snapshot "default/9/old": its volume waits for deletion
2 problems found; checked 4 snapshots, 4 volumes with 1940 mapped blocks, 2 mapped devices
`, "thinsnap: 2 problems found\n"}, got)

	got = try(t, true, backend{}, "check", "--repair", "--admin-address", address)
	require.Equal(t, exitFailure, got.code)
	require.Contains(t, got.out, "    repair: detach it\n", "the plan comes first")
	require.Contains(t, got.out, `
repaired: loop device /dev/loop7: uses the pool's file /var/lib/thinsnap/pool/data, but is not one of the pool's loop devices
not repaired: snapshot "`+layerKey+`": its volume 1 is not in the pool
`)

	got = try(t, false, backend{}, "check", "--json", "--admin-address", address)
	require.Equal(t, exitFailure, got.code)
	var report check.Report
	require.NoError(t, json.Unmarshal([]byte(got.out), &report))
	require.Equal(t, check.KindMissing, report.Findings[1].Kind)
}

func TestCheckOfStoppedDaemon(t *testing.T) {
	var roots []string
	b := backend{checkRoot: func(_ context.Context, c config.Config, repair bool) (check.Report, error) {
		roots = append(roots, fmt.Sprint(c.Root, " ", repair))
		if c.Root == "/busy" {
			return check.Report{}, fmt.Errorf("opening: %w", metadata.ErrLocked)
		}
		return check.Report{}, nil
	}}
	noDaemon := filepath.Join(t.TempDir(), "none.sock")
	got := try(t, true, b, "check", "--admin-address", noDaemon)
	require.Equal(t, result{exitOK, "no problems found; checked 0 snapshots, 0 volumes with 0 mapped blocks, 0 mapped devices\n", ""}, got)
	got = try(t, true, b, "check", "--root", "/elsewhere", "--repair")
	require.Equal(t, exitOK, got.code)
	require.Equal(t, []string{"/var/lib/thinsnap false", "/elsewhere false", "/elsewhere true"}, roots)
	got = try(t, true, b, "check", "--root", "/busy")
	require.Equal(t, exitFailure, got.code)
	require.Contains(t, got.err, "leave out --root")
}
