package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// forkLabel makes a Prepare a fork.
const forkLabel = "containerd.io/snapshot/thinsnap/from="

// A running container is forked: with its record, alone, and for a new container of any record. The forks have what it
// had at that moment, and nothing in common with it or with each other later.
func testFork(t *testing.T, b *bench) {
	if b.thinsnap == nil {
		return // no other snapshotter has forks
	}
	image := b.images.Busybox
	b.Pull(t, b.snapshotter, image)
	b.Ctr(t, "run", "--detach", "--null-io", "--snapshotter", b.snapshotter, "--label", "containerd.io/restart.policy=always",
		image, "warm", "sleep", "1000")
	b.write(t, "warm", "/state", "warm")

	printed := b.fork(t, "warm", "one")
	require.Contains(t, printed, "Container: one\n Start It: ctr --namespace "+b.Namespace+" --address ")
	b.fork(t, "warm", "two")
	b.write(t, "warm", "/state", "later")
	for _, id := range []string{"one", "two"} {
		b.Ctr(t, "tasks", "start", "--detach", "--null-io", id)
		require.Equal(t, "warm", b.read(t, id, "/state"))
	}
	b.write(t, "one", "/state", "one")
	require.Equal(t, []string{"later", "one", "warm"},
		[]string{b.read(t, "warm", "/state"), b.read(t, "one", "/state"), b.read(t, "two", "/state")})
	cgroups := make(map[string]bool)
	for _, id := range []string{"warm", "one", "two"} {
		record := b.record(t, id)
		require.Equal(t, id, record.SnapshotKey)
		cgroups[record.Spec.Linux.CgroupsPath] = true
		require.Equal(t, id == "warm", record.Labels["containerd.io/restart.policy"] == "always", "labels of %s", id)
	}
	require.Len(t, cgroups, 3)
	b.fork(t, "one", "three")
	require.Equal(t, b.record(t, "one").Image, b.record(t, "three").Image)

	testForkAlone(t, b)
	testForkToken(t, b, image)
	testRefusedForks(t, b, image)

	b.CollectGarbage(t)
	for _, id := range []string{"one", "two", "warm"} {
		b.Ctr(t, "tasks", "rm", "--force", id)
	}
	b.Ctr(t, "tasks", "start", "--detach", "--null-io", "three")
	require.Equal(t, "one", b.read(t, "three", "/state"), "after its source has ended")
	b.Ctr(t, "tasks", "rm", "--force", "three")
	b.Ctr(t, "containers", "rm", "warm", "one", "two", "three")
	b.Ctr(t, "snapshots", "--snapshotter", b.snapshotter, "rm", "alone")
	b.RemoveImage(t, image)
}

// testForkAlone forks a snapshot by its key. The collector leaves the fork.
func testForkAlone(t *testing.T, b *bench) {
	printed := b.fork(t, b.keyOf(t, "warm"), "alone")
	require.Contains(t, printed, " snapshots --snapshotter "+b.snapshotter+" rm alone")
	b.CollectGarbage(t)
	snapshots := func(args ...string) string {
		return b.Ctr(t, append([]string{"snapshots", "--snapshotter", b.snapshotter}, args...)...)
	}
	mounted(t, snapshots, "alone", func(dir string) {
		state, err := os.ReadFile(filepath.Join(dir, "state"))
		require.NoError(t, err)
		require.Equal(t, "later\n", string(state))
	})
}

// testForkToken gives the disk to a container that ctr makes. nerdctl's own containers are forked so, and not with
// their record. A token is for one snapshot.
func testForkToken(t *testing.T, b *bench, image string) {
	b.Nerdctl(t, b.snapshotter, "run", "--detach", "--name", "theirs", "--net", "none", image, "sleep", "1000")
	b.Nerdctl(t, b.snapshotter, "exec", "theirs", "sh", "-c", "echo theirs > /state")
	id := b.Nerdctl(t, b.snapshotter, "inspect", "--format", "{{.ID}}", "theirs")
	_, err := b.thinsnap.TryRun(b.Env(), "fork", id, "never")
	require.ErrorContains(t, err, "belongs to nerdctl")
	require.ErrorContains(t, err, "thinsnap fork --token "+id)

	token, err := b.thinsnap.TryRun(b.Env(), "fork", "--token", id)
	require.NoError(t, err)
	token = strings.TrimSpace(token)
	run := []string{"run", "--rm", "--snapshotter", b.snapshotter, "--snapshotter-label", forkLabel + token, image}
	require.Equal(t, "theirs", b.Ctr(t, append(run, "ours", "cat", "/state")...))
	_, err = b.TryCtr(append(run, "again", "cat", "/state")...)
	require.ErrorContains(t, err, "token")
	b.Nerdctl(t, b.snapshotter, "rm", "--force", "theirs")
	require.NotContains(t, b.thinsnap.Run(t, "ls", "--json"), token, "the token is not stored")
}

// testRefusedForks: a fork that is refused leaves nothing.
func testRefusedForks(t *testing.T, b *bench, image string) {
	b.CollectGarbage(t)
	before := b.Snapshots(t, b.snapshotter)
	top := b.record(t, "warm").parent(t, b)
	for _, refused := range []struct {
		args []string
		want string
	}{
		{[]string{"none", "new"}, `container "none"`},
		{[]string{"warm", "one"}, `container "one": already exists`},
		{[]string{"warm", "alone"}, `snapshot "alone"`}, // there is no such container, but such a snapshot
		{[]string{b.keyOf(t, top), "new"}, "fork"},
		{[]string{b.keyOf(t, "warm"), "one"}, "already exists"},
		{[]string{"--namespace", "other", "warm", "new"}, `name space "other"`},
	} {
		_, err := b.thinsnap.TryRun(b.Env(), append([]string{"fork"}, refused.args...)...)
		require.ErrorContains(t, err, refused.want)
	}
	_, err := b.TryCtr("run", "--rm", "--snapshotter", b.snapshotter, "--snapshotter-label", forkLabel+"invented", image, "new", "true")
	require.ErrorContains(t, err, "token")
	require.Equal(t, before, b.Snapshots(t, b.snapshotter))
	require.NotContains(t, b.Ctr(t, "leases", "ls"), "gc.expire")
}

// fork runs `thinsnap fork` on the containerd.
func (b *bench) fork(t *testing.T, args ...string) string {
	t.Helper()
	printed, err := b.thinsnap.TryRun(b.Env(), append([]string{"fork"}, args...)...)
	require.NoError(t, err)
	return printed
}

// write writes a file in a running container, and syncs.
func (b *bench) write(t *testing.T, id, path, content string) {
	t.Helper()
	b.Ctr(t, "tasks", "exec", "--exec-id", "write", id, "sh", "-c", "echo "+content+" > "+path+" && sync")
}

func (b *bench) read(t *testing.T, id, path string) string {
	t.Helper()
	return b.Ctr(t, "tasks", "exec", "--exec-id", "read", id, "cat", path)
}

// containerRecord is a part of what `ctr containers info` prints.
type containerRecord struct {
	SnapshotKey, Snapshotter, Image string
	Labels                          map[string]string
	Spec                            struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
}

func (b *bench) record(t *testing.T, id string) containerRecord {
	t.Helper()
	var record containerRecord
	require.NoError(t, json.Unmarshal([]byte(b.Ctr(t, "containers", "info", id)), &record))
	return record
}

// parent returns the parent of a container's snapshot.
func (r containerRecord) parent(t *testing.T, b *bench) string {
	t.Helper()
	return info(t, b.Ctr(t, "snapshots", "--snapshotter", r.Snapshotter, "info", r.SnapshotKey)).Parent
}

// keyOf returns thinsnap's key of a snapshot.
func (b *bench) keyOf(t *testing.T, snapshot string) string {
	t.Helper()
	var all []admin.Snapshot
	require.NoError(t, json.Unmarshal([]byte(b.thinsnap.Run(t, "ls", "--json")), &all))
	for _, s := range all {
		if strings.HasSuffix(s.Key, "/"+snapshot) {
			return s.Key
		}
	}
	require.Fail(t, "thinsnap has no snapshot "+snapshot)
	return ""
}
