package main

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
	grpccodes "google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// forkReports is a daemon whose container has an id mapping.
type forkReports struct{ fakeReports }

func (forkReports) Inspect(ctx context.Context, key string) (admin.Inspection, error) {
	inspection, err := fakeReports{}.Inspect(ctx, key)
	inspection.Labels = map[string]string{
		"containerd.io/snapshot/uidmapping": "0:1000:10", "containerd.io/snapshot/gidmapping": "0:2000:10",
		"containerd.io/snapshot/thinsnap/size": "1GiB", "colour": "green",
	}
	return inspection, err
}

// Snapshots adds a snapshot with the key of another container's snapshot, from a database that
// containerd has lost.
func (forkReports) Snapshots(ctx context.Context, labels bool) ([]admin.Snapshot, error) {
	snapshots, err := fakeReports{}.Snapshots(ctx, labels)
	return append(snapshots, admin.Snapshot{Key: "default/9999/box", Kind: admin.KindActive, Kept: true}), err
}

func TestForkContainer(t *testing.T) {
	containerd := newFakeContainerd(t)
	fork := func(args ...string) result {
		address := fakeDaemonOf(t, forkReports{})
		return try(t, false, backend{}, append([]string{"--admin-address", address, "fork", "--containerd", containerd.address}, args...)...)
	}
	got := fork("box", "new")
	require.Equal(t, result{out: "Container: new\n" +
		" Start It: ctr --namespace default --address " + containerd.address + " tasks start new\n" +
		" Remove It: ctr --namespace default --address " + containerd.address + " containers rm new\n"}, got)
	require.Len(t, containerd.snapshots.prepared, 1)
	prepared := containerd.snapshots.prepared[0]
	require.Equal(t, "new", prepared.GetKey())
	require.Equal(t, "sha256:2222222222222222222222222222222222222222222222222222222222222222", prepared.GetParent())
	require.Equal(t, map[string]string{
		"containerd.io/snapshot/thinsnap/from": "secret",
		"containerd.io/snapshot/uidmapping":    "0:1000:10", "containerd.io/snapshot/gidmapping": "0:2000:10",
	}, prepared.GetLabels())
	require.NotEmpty(t, containerd.snapshots.leased[0])
	record := containerd.containers.all["default/new"]
	require.Equal(t, "new", record.GetSnapshotKey())
	require.JSONEq(t, `{"linux": {"cgroupsPath": "/default/new"}}`, string(record.GetSpec().GetValue()))
	require.Empty(t, containerd.leases.held)
	require.False(t, containerd.leases.collected)

	got = fork("--json", "box", "other")
	require.Zero(t, got.code, got.err)
	require.JSONEq(t, `{"namespace": "default", "container": "other", "snapshotter": "thinsnap", "snapshot": "other"}`, got.out)
}

// TestForkOfContainerIsRefused: a failed fork creates nothing, or leaves its snapshot to
// containerd's garbage collector.
func TestForkOfContainerIsRefused(t *testing.T) {
	for _, test := range []struct {
		name      string
		args      []string
		before    func(*fakeContainerd)
		want      string
		prepared  int
		collected bool
	}{
		{name: "no container", args: []string{"none", "new"}, want: `find container "none" in containerd's namespace "default": no such container; --namespace names another namespace`},
		{name: "another namespace", args: []string{"--namespace", "empty", "box", "new"}, want: `namespace "empty"`},
		{name: "no snapshot", args: []string{"rootfs", "new"}, want: `container "rootfs" has no snapshot`},
		{name: "another snapshotter", args: []string{"theirs", "new"}, want: `does not have the snapshot "theirs" of container "theirs" (snapshotter "overlayfs")`},
		{name: "another client", args: []string{"--namespace", "moby", "box", "new"}, want: "does not have the snapshot"},
		{name: "a name that exists", args: []string{"box", "theirs"}, want: `container "theirs": already exists`},
		{name: "a name that containerd refuses", args: []string{"box", "a/b"}, want: `name of the fork: identifier "a/b" must match`},
		{
			name: "another name of the plugin", args: []string{"box", "new"}, collected: true,
			before: func(f *fakeContainerd) { f.containers.all["default/box"].Snapshotter = "thin" },
			want:   `container "box" has its snapshot in "thin", and containerd knows thinsnap as "thinsnap"`,
		},
		{
			name: "a prepare that fails", args: []string{"box", "new"}, collected: true,
			before: func(f *fakeContainerd) {
				f.snapshots.failed = status.Error(grpccodes.ResourceExhausted, "the pool is short")
			},
			want: `fork box: prepare snapshot "new": the pool is short`,
		},
		{
			name: "a record that fails", args: []string{"box", "new"}, prepared: 1, collected: true,
			before: func(f *fakeContainerd) { f.containers.failed = status.Error(grpccodes.Unavailable, "the disk is full") },
			want:   `fork box: create container "new": the disk is full`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			containerd := newFakeContainerd(t)
			if test.before != nil {
				test.before(containerd)
			}
			got := try(t, false, backend{}, append([]string{
				"--admin-address", fakeDaemon(t), "fork", "--containerd", containerd.address,
			}, test.args...)...)
			require.Equal(t, exitFailure, got.code)
			require.Contains(t, got.err, test.want)
			require.Len(t, containerd.snapshots.prepared, test.prepared)
			require.Empty(t, containerd.leases.held)
			require.Equal(t, test.collected, containerd.leases.collected)
			require.NotContains(t, containerd.containers.all, "default/new")
		})
	}
}

// TestForkIsInterrupted: signals cancel the context.
func TestForkIsInterrupted(t *testing.T) {
	containerd := newFakeContainerd(t)
	ctx, interrupt := context.WithCancel(t.Context())
	containerd.snapshots.hangs = interrupt
	var out, errOut bytes.Buffer
	a := &app{out: &out, errOut: &errOut}
	code := a.run(ctx, []string{
		"thinsnap", "--admin-address", fakeDaemon(t), "fork", "--containerd", containerd.address, "box", "new",
	})
	require.Equal(t, exitFailure, code)
	require.Contains(t, errOut.String(), "canceled")
	require.Empty(t, containerd.leases.held)
	require.True(t, containerd.leases.collected)
	require.NotContains(t, containerd.containers.all, "default/new")
}

func TestForkSnapshot(t *testing.T) {
	containerd := newFakeContainerd(t)
	address := fakeDaemon(t)
	fork := func(args ...string) result {
		return try(t, false, backend{}, append([]string{"--admin-address", address, "fork", "--containerd", containerd.address}, args...)...)
	}
	ctr := "ctr --namespace default --address " + containerd.address + " snapshots --snapshotter thinsnap "
	require.Equal(t, result{out: "Snapshot: new\n Mount It: " + ctr + "mounts DIRECTORY new\n Remove It: " + ctr + "rm new\n"},
		fork("--namespace", "other", containerKey, "new"))
	require.Len(t, containerd.snapshots.prepared, 1)
	labels := containerd.snapshots.prepared[0].GetLabels()
	require.Contains(t, labels, "containerd.io/gc.root")
	require.Equal(t, "secret", labels["containerd.io/snapshot/thinsnap/from"])
	require.Equal(t, []string{"default"}, containerd.snapshots.in, "the namespace of the key")

	for want, args := range map[string][]string{
		"fork " + layerKey + ": fork snapshot " + layerKey + ": it is not active": {layerKey, "new"},
		"snapshot default/1/none does not exist":                                  {"default/1/none", "new"},
		"fork a/b: it is not a snapshot of containerd's":                          {"a/b", "new"},
		`identifier "new one" must match`:                                         {containerKey, "new one"},
	} {
		got := fork(args...)
		require.Equal(t, exitFailure, got.code)
		require.Contains(t, got.err, want)
	}
	require.Len(t, containerd.snapshots.prepared, 1)
}

func TestForkToken(t *testing.T) {
	containerd := newFakeContainerd(t)
	address := fakeDaemon(t)
	require.Equal(t, "secret\n", output(t, false, "fork", "--admin-address", address, "--containerd", "unix://"+containerd.address, "--token", "box"))
	require.Equal(t, "secret\n", output(t, false, "fork", "--admin-address", address, "--containerd", "/none", "--token", containerKey),
		"a key needs no containerd")
	var issued admin.Fork
	require.NoError(t, json.Unmarshal([]byte(output(t, false, "fork", "--admin-address", address, "--token", "--json", containerKey)), &issued))
	require.Equal(t, "containerd.io/snapshot/thinsnap/from", issued.Label)
	require.Empty(t, containerd.snapshots.prepared)

	containerd.containers.all["default/box"].Snapshotter = "overlayfs"
	got := try(t, false, backend{}, "fork", "--admin-address", address, "--containerd", containerd.address, "--token", "box")
	require.Equal(t, exitFailure, got.code)
	require.Contains(t, got.err, `has its snapshot in "overlayfs"`, "thinsnap's snapshot with that key belongs to another container")
	require.Empty(t, got.out)
}

func TestForkCommandLine(t *testing.T) {
	for want, args := range map[string][]string{
		"missing argument; usage: thinsnap fork [options] CONTAINER|KEY [NEW]": {"box"},
		`--token does not take the name of a fork: "new"`:                      {"--token", "box", "new"},
		`unexpected argument "more"`:                                           {"box", "new", "more"},
		"missing argument":                                                     {},
	} {
		got := try(t, false, backend{}, append([]string{"fork"}, args...)...)
		require.Equal(t, exitUsage, got.code)
		require.Contains(t, got.err, want)
	}
	got := try(t, false, backend{}, "fork", "--admin-address", fakeDaemon(t), "--containerd", "/none/containerd.sock", "box", "new")
	require.Equal(t, exitFailure, got.code)
	require.Contains(t, got.err, "/none/containerd.sock")
	require.Contains(t, got.err, "; --containerd names another socket")
	got = try(t, false, backend{}, "fork", "--admin-address", "/none/admin.sock", "--token", containerKey)
	require.Equal(t, exitUnavailable, got.code)
}
