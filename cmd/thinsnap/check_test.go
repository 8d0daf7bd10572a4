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

func TestCheckOfADaemon(t *testing.T) {
	address := fakeDaemon(t)
	got := try(t, false, backend{}, "check", "--admin-address", address)
	require.Equal(t, result{exitFailure, `wrong: loop device /dev/loop7: stands on /var/lib/thinsnap/pool/data, which is the pool's
    --repair would detach it
wrong: snapshot "` + layerKey + `": its volume 1 is not in the pool
pending: removed snapshot "default/9/old": its volume waits to be deleted
2 wrong: 4 snapshots, 4 volumes with 1940 mapped blocks, 2 mapped devices
`, "thinsnap: 2 things are wrong\n"}, got)

	got = try(t, true, backend{}, "check", "--repair", "--admin-address", address)
	require.Equal(t, exitFailure, got.code)
	require.Contains(t, got.out, "    repair: detach it\n", "it says first what it will do")
	require.Contains(t, got.out, `
mended: loop device /dev/loop7: stands on /var/lib/thinsnap/pool/data, which is the pool's
still wrong: snapshot "`+layerKey+`": its volume 1 is not in the pool
`)

	got = try(t, false, backend{}, "check", "--json", "--admin-address", address)
	require.Equal(t, exitFailure, got.code)
	var report check.Report
	require.NoError(t, json.Unmarshal([]byte(got.out), &report))
	require.Equal(t, check.KindMissing, report.Findings[1].Kind)
}

func TestCheckOfAStoppedRoot(t *testing.T) {
	var roots []string
	b := backend{checkRoot: func(_ context.Context, c config.Config, repair bool) (check.Report, error) {
		roots = append(roots, fmt.Sprint(c.Root, " ", repair))
		if c.Root == "/busy" {
			return check.Report{}, fmt.Errorf("opening: %w", metadata.ErrLocked)
		}
		return check.Report{}, nil
	}}
	nobody := filepath.Join(t.TempDir(), "nobody.sock")
	got := try(t, true, b, "check", "--admin-address", nobody)
	require.Equal(t, result{exitOK, "all is well: 0 snapshots, 0 volumes with 0 mapped blocks, 0 mapped devices\n", ""}, got)
	got = try(t, true, b, "check", "--root", "/elsewhere", "--repair")
	require.Equal(t, exitOK, got.code)
	require.Equal(t, []string{"/var/lib/thinsnap false", "/elsewhere false", "/elsewhere true"}, roots)
	got = try(t, true, b, "check", "--root", "/busy")
	require.Equal(t, exitFailure, got.code)
	require.Contains(t, got.err, "without --root")
}
