package integration

import (
	"cmp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// testRun: each container of ctr and of nerdctl has a writable root file system of its own.
func testRun(t *testing.T, b *testbed) {
	image := b.images.Busybox
	b.Pull(t, b.snapshotter, image)
	const script = `grep " / " /proc/mounts; cat /written
echo text > /written && rm /data/numbers && mkdir /new && mv /etc/passwd /new && sync && cat /written`
	root := "overlay / overlay rw,.*"
	if b.thinsnap != nil {
		root = "/dev/mapper/" + b.thinsnap.PoolName + `-snap-\d+ / ext4 rw,.*`
	}
	require.Regexp(t, "^"+root+"\ntext$", b.Ctr(t, "run", "--rm", "--snapshotter", b.snapshotter, image, "one", "sh", "-c", script))
	require.Regexp(t, "^"+root+"\ntext$", b.Nerdctl(t, b.snapshotter, "run", "--rm", "--net", "none", image, "sh", "-c", script))
	if b.thinsnap != nil {
		requireOwners(t, b)
	}
	b.RemoveImage(t, image)
}

// requireOwners checks the owners that thinsnap reports for the snapshots of the small image and of two containers.
func requireOwners(t *testing.T, b *testbed) {
	t.Helper()
	image := b.images.Busybox
	b.Ctr(t, "containers", "create", "--snapshotter", b.snapshotter, image, "made")
	b.Nerdctl(t, b.snapshotter, "create", "--name", "named", "--net", "none", image)
	found := make(map[string]int)
	require.Eventually(t, func() bool { // answers are cached for some seconds
		clear(found)
		owners, err := b.thinsnap.Admin().Owners(t.Context())
		require.NoError(t, err)
		require.Empty(t, owners.Unknown)
		for _, o := range owners.Owners {
			require.True(t, strings.HasPrefix(o.Key, o.Namespace+"/"))
			for _, name := range o.Images {
				found["image "+name]++
			}
			if o.Container != nil {
				require.Equal(t, image, o.Container.Image)
				found["container "+cmp.Or(o.Container.Name, o.Container.ID)]++
			}
		}
		return len(found) == 3
	}, time.Minute, 200*time.Millisecond, "%v", found)
	require.Equal(t, map[string]int{"image " + image: 2, "container made": 1, "container named": 1}, found)
	for _, name := range []string{"made", "named"} {
		require.Contains(t, b.thinsnap.Run(t, "inspect", name), "Image: "+image)
	}
	require.Contains(t, b.thinsnap.Run(t, "inspect", image), "Kind: committed")
	b.Nerdctl(t, b.snapshotter, "rm", "named")
	b.Ctr(t, "containers", "delete", "made")
}

// testCommit: a container's changes become the top layer of an image, and other containers start from it.
func testCommit(t *testing.T, b *testbed) {
	nerdctl := func(args ...string) string { return b.Nerdctl(t, b.snapshotter, args...) }
	image := b.images.Busybox
	nerdctl("pull", "--quiet", image)
	nerdctl("run", "--name", "writer", "--net", "none", image, "sh", "-c",
		"echo first > /written && chmod 4711 /written && ln /written /linked && mkfifo /fifo && rm -r /data && mkdir /data && chown 7:8 /data")
	nerdctl("commit", "writer", "written:1")
	require.Equal(t, "first\n4711 2\nfifo 7:8\n0",
		nerdctl("run", "--rm", "--net", "none", "written:1", "sh", "-c",
			`cat /linked; stat -c "%a %h" /written; stat -c %F /fifo | tr "\n" " "; stat -c %u:%g /data; ls /data | wc -l`))

	nerdctl("run", "--name", "second", "--net", "none", "written:1", "sh", "-c", "echo second >> /written")
	nerdctl("commit", "second", "written:2")
	require.Equal(t, "first\nsecond", nerdctl("run", "--rm", "--net", "none", "written:2", "cat", "/written"))

	nerdctl("rm", "writer", "second")
	b.CheckLayers(t)
	nerdctl("rmi", "written:2", "written:1", image)
}
