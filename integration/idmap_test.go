package integration

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// testOtherOwners: a container in a user namespace gets the image with shifted owners by an idmapped mount, not by a
// copy.
func testOtherOwners(t *testing.T, b *testbed) {
	if !b.Release.RemapIDs {
		t.Skipf("%s does not ask for ID-mapped mounts", b.Release.Name)
	}
	image := b.images.Busybox
	b.Pull(t, b.snapshotter, image)
	out := b.Ctr(t, "run", "--rm", "--snapshotter", b.snapshotter, "--remap-labels",
		"--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", image, "mapped", "sh", "-c",
		`awk "{print \$2}" /proc/self/uid_map; stat -c %u:%g /bin/busybox; echo x > /new && chown 5:6 /new && stat -c %u:%g /new`)
	require.Equal(t, "100000\n0:0\n5:6", out)
	b.forkMapped(t, image)
	b.RemoveImage(t, image)
}

// forkMapped forks a container in a user namespace. The fork has the same mapping, and the same owners in it.
func (b *testbed) forkMapped(t *testing.T, image string) {
	t.Helper()
	if b.thinsnap == nil {
		return
	}
	b.Ctr(t, "run", "--detach", "--null-io", "--snapshotter", b.snapshotter, "--remap-labels",
		"--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", image, "warm", "sleep", "1000")
	b.Ctr(t, "tasks", "exec", "--exec-id", "own", "warm", "sh", "-c", "echo x > /new && chown 5:6 /new")
	b.fork(t, "warm", "box")
	b.Ctr(t, "tasks", "start", "--detach", "--null-io", "box")
	require.Equal(t, "100000\n0:0\n5:6", b.Ctr(t, "tasks", "exec", "--exec-id", "look", "box", "sh", "-c",
		`awk "{print \$2}" /proc/self/uid_map; stat -c %u:%g /bin/busybox; stat -c %u:%g /new`))
	b.Ctr(t, "tasks", "rm", "--force", "warm")
	b.Ctr(t, "tasks", "rm", "--force", "box")
	b.Ctr(t, "containers", "rm", "warm", "box")
}
