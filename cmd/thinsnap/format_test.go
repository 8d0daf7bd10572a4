package main

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// controls are characters that may control a terminal: C0, DEL, C1 (CSI, OSC), a bidirectional
// override, an invisible tag beyond the first plane, and a byte that is not UTF-8.
const controls = "a\x1b[2J\u009b2J\u009d0;t\u007f\u202e\u2066\ufeff\U000e0041\xff\r\nb"

// hostileReports is a daemon whose snapshots have controls in all strings that clients choose.
type hostileReports struct{ fakeReports }

func hostileSnapshots() []admin.Snapshot {
	return []admin.Snapshot{
		{Key: controls, Kind: admin.KindCommitted, Labels: map[string]string{controls: controls}},
		{Key: "child", Kind: admin.KindActive, Parent: controls, Labels: map[string]string{"containerd.io/snapshot/x": controls}},
	}
}

func (hostileReports) Snapshots(context.Context, bool) ([]admin.Snapshot, error) {
	return hostileSnapshots(), nil
}

func (hostileReports) Owners(context.Context) (admin.Owners, error) {
	return admin.Owners{Unknown: controls, Owners: []admin.Owner{
		{Key: controls, Namespace: controls, Images: []string{controls, controls}},
		{Key: "child", Container: &admin.Container{ID: controls, Name: controls, Image: controls, Pod: controls, PodNamespace: controls}},
	}}, nil
}

func (hostileReports) Inspect(context.Context, string) (admin.Inspection, error) {
	return admin.Inspection{Snapshot: hostileSnapshots()[1], Chain: []string{controls}}, nil
}

func (hostileReports) Diff(context.Context, string) (admin.Difference, error) {
	return admin.Difference{Key: controls, Parent: controls, Changes: []admin.Change{
		{Kind: admin.ChangeAdded, Path: controls, PathBytes: []byte(controls)}, {Kind: admin.ChangeDeleted, Path: controls},
	}}, nil
}

func (hostileReports) Trim(context.Context, string) (admin.Trimming, error) {
	return admin.Trimming{Key: controls}, nil
}

func (hostileReports) Trash(context.Context, int) ([]admin.Removed, error) {
	return []admin.Removed{{Key: controls}}, nil
}

// TestNothingControlsTheTerminal: every command escapes or quotes the strings that clients choose.
func TestNothingControlsTheTerminal(t *testing.T) {
	address := fakeDaemonOf(t, hostileReports{})
	for _, args := range [][]string{
		{"ls"}, {"ls", "--json"}, {"tree"}, {"tree", "--json"}, {"inspect", "child"}, {"inspect", "--json", "child"}, {"diff", "child"}, {"diff", "--json", "child"},
		{"info"}, {"info", "--json"}, {"pool", "trim", "child"}, {"pool", "status"}, {"pool", "status", "--json"}, {"check"}, {"check", "--json"},
	} {
		got := try(t, true, backend{}, append([]string{"--admin-address", address}, args...)...)
		for _, r := range got.out + got.err {
			require.True(t, r == '\n' || strconv.IsPrint(r), "%v prints %q", args, got.out)
		}
		if slices.Contains(args, "--json") {
			require.True(t, json.Valid([]byte(got.out)), args)
		}
	}
	got := try(t, true, backend{}, "--admin-address", address, "ls", "--json")
	var list admin.SnapshotList
	require.NoError(t, json.Unmarshal([]byte(got.out), &list))
	read, want := list.Snapshots, hostileSnapshots()
	require.Len(t, read, len(want))
	require.Equal(t, "a\x1b[2J\u009b2J\u009d0;t\u007f\u202e\u2066\ufeff\U000e0041\ufffd\r\nb", read[0].Key, "the same JSON")
}
