package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/admin"
)

// forkLabel makes a Prepare a fork.
const forkLabel = "containerd.io/snapshot/thinsnap/from="

// testFork forks a running container: with its metadata in containerd, as a snapshot alone, and for a container that a
// client makes. Each fork has the container's content of that moment, and shares no later change.
func testFork(t *testing.T, b *testbed) {
	if b.thinsnap == nil {
		t.Skip("no other snapshotter has forks")
	}
	image, leases := b.images.Busybox, b.leases(t) // leases of commits last an hour
	b.Pull(t, b.snapshotter, image)
	b.Ctr(t, "run", "--detach", "--null-io", "--snapshotter", b.snapshotter, "--label", "containerd.io/restart.policy=always",
		image, "warm", "sleep", "1000")
	b.write(t, "warm", "/state", "warm")
	printed := b.fork(t, "warm", "box")
	require.Contains(t, printed, "Container: box\n Start It: ctr --namespace "+b.Namespace+" --address ")
	b.write(t, "warm", "/state", "later")
	b.Ctr(t, "tasks", "start", "--detach", "--null-io", "box")
	require.Equal(t, "warm", b.read(t, "box", "/state"))

	record := b.record(t, "box")
	require.Equal(t, "box", record.SnapshotKey)
	require.Equal(t, image, record.Image)
	require.Equal(t, "/"+b.Namespace+"/box", record.Spec.Linux.CgroupsPath)
	require.NotContains(t, record.Labels, "containerd.io/restart.policy")

	testForkAlone(t, b)
	testForkToken(t, b, image)
	testRefusedForks(t, b, leases)

	b.Ctr(t, "tasks", "rm", "--force", "warm")
	b.Ctr(t, "containers", "rm", "warm")
	require.Equal(t, "warm", b.read(t, "box", "/state"), "without its source")
	b.Ctr(t, "tasks", "rm", "--force", "box")
	b.Ctr(t, "containers", "rm", "box")
	b.Ctr(t, "snapshots", "--snapshotter", b.snapshotter, "rm", "alone")
	b.RemoveImage(t, image)
}

func testForkAlone(t *testing.T, b *testbed) {
	printed := b.fork(t, b.keyOf(t, "warm"), "alone")
	require.Contains(t, printed, " snapshots --snapshotter "+b.snapshotter+" rm alone")
	snapshots := func(args ...string) string {
		return b.Ctr(t, append([]string{"snapshots", "--snapshotter", b.snapshotter}, args...)...)
	}
	mounted(t, snapshots, "alone", func(dir string) {
		state, err := os.ReadFile(filepath.Join(dir, "state"))
		require.NoError(t, err)
		require.Equal(t, "later\n", string(state))
	})
}

// testForkToken gives the forked disk to a container that ctr makes. nerdctl's containers can be forked only this way.
// A token is for one snapshot.
func testForkToken(t *testing.T, b *testbed, image string) {
	source := "warm"
	if b.Release.Transfer { // not with containerd 1.6, to save time
		b.Nerdctl(t, b.snapshotter, "run", "--detach", "--name", "theirs", "--net", "none", image, "sh", "-c",
			"echo later > /state; sleep 1000")
		defer b.Nerdctl(t, b.snapshotter, "rm", "--force", "theirs")
		source = b.Nerdctl(t, b.snapshotter, "inspect", "--format", "{{.ID}}", "theirs")
		_, err := b.thinsnap.TryRun(b.Env(), "fork", source, "never")
		require.ErrorContains(t, err, "belongs to nerdctl")
		require.ErrorContains(t, err, "thinsnap fork --token "+source)
		b.Nerdctl(t, b.snapshotter, "exec", "theirs", "sh", "-c", "until [ -s /state ]; do sleep 0.1; done")
	}
	token := b.fork(t, "--token", source)
	run := []string{"run", "--rm", "--snapshotter", b.snapshotter, "--snapshotter-label", forkLabel + token, image}
	require.Equal(t, "later", b.Ctr(t, append(run, "ours", "cat", "/state")...))
	_, err := b.TryCtr(append(run, "again", "cat", "/state")...)
	require.ErrorContains(t, err, "its token is unknown, was used")
}

// testRefusedForks: a refused fork leaves nothing, and the collector removes none of the other forks.
func testRefusedForks(t *testing.T, b *testbed, leases []string) {
	b.CollectGarbage(t)
	before := b.Snapshots(t, b.snapshotter)
	warm := slices.IndexFunc(before, func(s harnesstest.Snapshot) bool { return s.Key == "warm" })
	require.GreaterOrEqual(t, warm, 0)
	for _, refused := range []struct {
		args []string
		want string
	}{
		{[]string{"none", "new"}, `container "none"`},
		{[]string{"warm", "box"}, `container "box": already exists`},
		{[]string{"warm", "alone"}, `snapshot "alone"`}, // no container has this name, but a snapshot has
		{[]string{b.keyOf(t, before[warm].Parent), "new"}, "it is committed"},
		{[]string{b.keyOf(t, "warm"), "box"}, "already exists"},
		{[]string{"--namespace", "other", "warm", "new"}, `namespace "other"`},
	} {
		_, err := b.thinsnap.TryRun(b.Env(), append([]string{"fork"}, refused.args...)...)
		require.ErrorContains(t, err, refused.want)
	}
	require.Equal(t, before, b.Snapshots(t, b.snapshotter))
	require.Equal(t, leases, b.leases(t))
}

func (b *testbed) fork(t *testing.T, args ...string) string {
	t.Helper()
	printed, err := b.thinsnap.TryRun(b.Env(), append([]string{"fork"}, args...)...)
	require.NoError(t, err)
	return printed
}

// write writes a file in a running container, and syncs.
func (b *testbed) write(t *testing.T, id, path, content string) {
	t.Helper()
	b.Ctr(t, "tasks", "exec", "--exec-id", "write", id, "sh", "-c", "echo "+content+" > "+path+" && sync")
}

func (b *testbed) read(t *testing.T, id, path string) string {
	t.Helper()
	return b.Ctr(t, "tasks", "exec", "--exec-id", "read", id, "cat", path)
}

// containerRecord is a part of the output of `ctr containers info`.
type containerRecord struct {
	SnapshotKey, Image string
	Labels             map[string]string
	Spec               struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
}

func (b *testbed) record(t *testing.T, id string) containerRecord {
	t.Helper()
	var record containerRecord
	require.NoError(t, json.Unmarshal([]byte(b.Ctr(t, "containers", "info", id)), &record))
	return record
}

// keyOf returns thinsnap's key of a snapshot.
func (b *testbed) keyOf(t *testing.T, snapshot string) string {
	t.Helper()
	var all admin.SnapshotList
	require.NoError(t, json.Unmarshal([]byte(b.thinsnap.Run(t, "ls", "--json")), &all))
	for _, s := range all.Snapshots {
		if strings.HasSuffix(s.Key, "/"+snapshot) {
			return s.Key
		}
	}
	require.Fail(t, "thinsnap has no snapshot "+snapshot)
	return ""
}
