package main

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/pool/repair"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/daemon"
)

func TestPoolCheck(t *testing.T) {
	const path = "/var/lib/thinsnap/pool/metadata"
	for out, test := range map[string]struct {
		report repair.Report
		code   int
	}{
		"no problems found: metadata in " + path + ", 4 volumes\n": {repair.Report{Path: path, Volumes: 4}, exitOK},
		"note: volume 7 has no mapping tree: the kernel left it after a failed write; it has no data, and thinsnap ignores it\n" +
			"no problems found: metadata in " + path + ", 1 volume\n": {repair.Report{Path: path, Volumes: 1, Treeless: []uint32{7}}, exitOK},
		"problem: the kernel has marked the metadata needs_check, and refuses changes until the mark is cleared\n" +
			"not damaged, but marked needs_check: metadata in " + path + ", 4 volumes\n": {repair.Report{Path: path, Volumes: 4, NeedsCheck: true}, exitFailure},
		"problem: bad checksum in btree node (block 32)\n" +
			"damaged: metadata in " + path + ", 0 volumes\n": {repair.Report{Path: path, Complaints: []string{"bad checksum in btree node (block 32)"}}, exitFailure},
	} {
		var roots []string
		b := backend{checkPool: func(_ context.Context, c config.Config) (repair.Report, error) {
			roots = append(roots, c.Root)
			return test.report, nil
		}}
		got := try(t, true, b, "pool", "check", "--root", "/srv/x")
		require.Equal(t, out, got.out)
		require.Equal(t, test.code, got.code)
		require.Equal(t, []string{"/srv/x"}, roots)
		if test.code != exitOK {
			require.Contains(t, got.err, "thinsnap pool repair --dry-run")
		}
	}
}

func TestPoolRepair(t *testing.T) {
	const path = "/var/lib/thinsnap/pool/metadata"
	report := repair.Report{Path: path, Complaints: []string{"superblock is corrupt"}}
	done := daemon.Repaired{Outcome: repair.Outcome{Backup: path + ".backup-1", Report: repair.Report{Path: path, Volumes: 4}, Compared: true}}
	var calls []string
	var repairErr error
	b := backend{
		repairPool: func(_ context.Context, c config.Config, bytes uint64, show func(repair.Report, []string) (bool, error)) (daemon.Repaired, error) {
			if repairErr != nil {
				return daemon.Repaired{}, repairErr
			}
			more, err := show(report, []string{"truncate", "mv"})
			calls = append(calls, fmt.Sprint(c.Root, " ", bytes, " ", more))
			return done, err
		},
		undoRepair: func(_ context.Context, _ config.Config, lose bool) (string, string, error) {
			if !lose {
				return "", "", fmt.Errorf("undo: %w", repair.ErrUsedSince)
			}
			return path + ".backup-1", path + ".backup-2", nil
		},
	}
	const plan = "problem: superblock is corrupt\ndamaged: metadata in " + path + ", 0 volumes\ntruncate\nmv\n"
	const end = "repaired: " + path + ", 4 volumes; the old metadata is in " + path + ".backup-1\n" +
		"next: start thinsnap and run \"thinsnap check\"; to undo the repair, run \"thinsnap pool repair --undo\" before that\n"
	require.Equal(t, result{exitOK, plan, ""}, try(t, false, b, "pool", "repair", "--dry-run"))
	require.Equal(t, result{exitOK, plan + end, ""}, try(t, false, b, "pool", "repair", "--root", "/srv/x", "--metadata", "16MiB"))
	require.Equal(t, []string{"/var/lib/thinsnap 0 false", "/srv/x 16777216 true"}, calls)

	done.Compared, done.Losses = false, []string{`snapshot "a" (volume 5): all of its 12 blocks`}
	require.Equal(t, result{exitFailure, plan + `lost: snapshot "a" (volume 5): all of its 12 blocks
note: the old metadata could not be read completely, so more may be lost than is listed
` + end, "thinsnap: data was lost in 1 volume: remove the listed snapshots, and those made from them\n"},
		try(t, true, b, "pool", "repair"))

	repairErr = fmt.Errorf("nothing wrong: %w", repair.ErrNothingToDo)
	require.Equal(t, result{exitOK, "nothing wrong: there is nothing to repair\n", ""}, try(t, false, b, "pool", "repair"))
	repairErr = fmt.Errorf("not today: %w", repair.ErrNotRepaired)
	require.Equal(t, result{exitFailure, "", "thinsnap: not today: the metadata was not changed\n"}, try(t, false, b, "pool", "repair"))

	require.Equal(t, result{exitOK, "restored: " + path + ".backup-1; the replaced metadata is in " + path + ".backup-2\n", ""},
		try(t, false, b, "pool", "repair", "--undo", "--yes"))
	got := try(t, false, b, "pool", "repair", "--undo")
	require.Equal(t, exitFailure, got.code)
	require.Contains(t, got.err, "add --yes")
	for _, args := range [][]string{{"--undo", "--dry-run"}, {"--undo", "--metadata", "1GiB"}, {"--metadata", "+1GiB"}, {"more"}} {
		require.Equal(t, exitUsage, try(t, false, b, append([]string{"pool", "repair"}, args...)...).code, args)
	}
}
