package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// shared is a thinsnap whose socket several containerds use.
type shared struct {
	*harnesstest.Thinsnap
	tools  harness.Tools
	images harnesstest.Images
}

func newShared(t *testing.T, name string) *shared {
	t.Helper()
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	return &shared{harnesstest.StartThinsnap(t, tools, name), tools, harnesstest.StartRegistry(t, tools)}
}

// containerd starts a containerd with data of its own, in which thinsnap's proxy plugin has the given name.
func (c *shared) containerd(t *testing.T, proxy string) *harnesstest.Containerd {
	t.Helper()
	p := c.Proxy()
	p.Name = proxy
	return harnesstest.StartContainerdWith(t, c.tools, c.tools.Releases[0], harness.Setup{
		Dir: harnesstest.NewDisk(t), Proxies: []harness.Proxy{p}, Namespace: "clients",
	})
}

func (c *shared) keys(t *testing.T) []string {
	t.Helper()
	snapshots, err := c.Admin().Snapshots(t.Context(), false)
	require.NoError(t, err)
	var all []string
	for _, s := range snapshots {
		all = append(all, s.Key)
	}
	return all
}

// fill has a containerd pull an image, and prepare a snapshot on it.
func (c *shared) fill(t *testing.T, d *harnesstest.Containerd, image, key string) {
	t.Helper()
	d.Pull(t, harness.ThinsnapName, image)
	d.Ctr(t, "snapshots", "--snapshotter", harness.ThinsnapName, "prepare", key, d.TopLayer(t, harness.ThinsnapName))
}

// collect has a containerd pull and remove an image. Its collector then tries to remove each snapshot in thinsnap that
// it does not know.
func (c *shared) collect(t *testing.T, d *harnesstest.Containerd, proxy, image string) error {
	t.Helper()
	_, err := d.TryCtr("images", "pull", "--plain-http", "--snapshotter", proxy, image)
	_, removeErr := d.TryCtr("images", "rm", "--sync", image)
	require.NoError(t, removeErr)
	return err
}

// restart ends a containerd with end, starts it again, and waits until thinsnap has identified it.
func (c *shared) restart(t *testing.T, d *harnesstest.Containerd, end func()) {
	t.Helper()
	end()
	require.NoError(t, d.Start())
	d.AwaitSnapshotter(t, harness.ThinsnapName)
}

// TestSecondContainerd: thinsnap refuses a second containerd on the same socket, and the first keeps working, also
// after a restart of either.
func TestSecondContainerd(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	c := newShared(t, "second")
	first := c.containerd(t, harness.ThinsnapName)
	c.fill(t, first, c.images.Busybox, "work")
	before := c.keys(t)
	require.Len(t, before, 3)
	second := c.containerd(t, harness.ThinsnapName)
	refused := func() {
		t.Helper()
		err := c.collect(t, second, harness.ThinsnapName, c.images.Busybox)
		require.Equal(t, before, c.keys(t), "the collector of a second containerd removes nothing")
		require.ErrorContains(t, err, "is used by process")
		require.ErrorContains(t, err, "/containerd)")
	}
	refused()
	c.Stop(t)
	c.Start(t)
	refused()
	require.Contains(t, c.Run(t, "info"), " Refused Calls of Others: ")

	for _, end := range []func(){func() { require.NoError(t, first.Stop()) }, func() { first.Kill() }} {
		c.restart(t, first, end)
		first.Ctr(t, "snapshots", "--snapshotter", harness.ThinsnapName, "rm", "work")
		first.CollectGarbage(t)
		require.Len(t, c.keys(t), 2, "a restarted containerd's collector works at once")
		first.Ctr(t, "snapshots", "--snapshotter", harness.ThinsnapName, "prepare", "work", first.TopLayer(t, harness.ThinsnapName))
		before = c.keys(t)
		refused()
	}
	first.Ctr(t, "snapshots", "--snapshotter", harness.ThinsnapName, "rm", "work")
	first.RemoveImage(t, c.images.Busybox)
	require.Empty(t, c.keys(t))
}

// TestLostContainerd: a containerd whose data was wiped, or is older than the snapshots, works. Its collector leaves
// unknown snapshots until a command allows it to remove them.
func TestLostContainerd(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	for _, lost := range []struct {
		name string
		// data changes the containerd's data.
		data func(t *testing.T, root string)
	}{
		{"wiped", func(t *testing.T, root string) { require.NoError(t, os.RemoveAll(root)) }},
		{"restored", func(t *testing.T, root string) {
			require.NoError(t, os.RemoveAll(root))
			require.NoError(t, os.Rename(root+".copy", root))
		}},
	} {
		t.Run(lost.name, func(t *testing.T) {
			t.Parallel()
			c := newShared(t, lost.name)
			d := c.containerd(t, harness.ThinsnapName)
			require.NoError(t, d.Stop())
			require.NoError(t, os.CopyFS(d.Root+".copy", os.DirFS(d.Root)))
			require.NoError(t, d.Start())
			c.fill(t, d, c.images.Busybox, "work")
			before := c.keys(t)

			c.restart(t, d, func() {
				require.NoError(t, d.Stop())
				lost.data(t, d.Root)
			})
			c.fill(t, d, c.images.Busybox, "other")
			// The collector visits a snapshotter only after a removal of one of its snapshots.
			collect := func() {
				t.Helper()
				d.Ctr(t, "snapshots", "--snapshotter", harness.ThinsnapName, "prepare", "gone")
				d.Ctr(t, "snapshots", "--snapshotter", harness.ThinsnapName, "rm", "gone")
				d.CollectGarbage(t)
			}
			collect()
			after := c.keys(t)
			require.Subset(t, after, before)
			require.NotEmpty(t, after[len(after)-1], "other")
			require.Contains(t, c.Run(t, "info"), " Snapshots Kept From Before: ")
			kept := c.Info(t).Client.KeptSnapshots
			require.NotZero(t, kept)

			require.Contains(t, c.Run(t, "client", "accept"), " Snapshots Kept From Before: 0\n")
			collect()
			require.Len(t, c.keys(t), len(after)-int(kept))
			d.Ctr(t, "snapshots", "--snapshotter", harness.ThinsnapName, "rm", "other")
			d.RemoveImage(t, c.images.Busybox)
			require.Empty(t, c.keys(t))
		})
	}
}

// TestContainerdThatCallsBeforeItListens: a containerd with the CRI reads its snapshots while it loads its plugins, but
// can be asked for its UUID only when it listens. If a power cut emptied the UUID's file, it has a new UUID, and can
// still use the snapshots of its database.
func TestContainerdThatCallsBeforeItListens(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	c := newShared(t, "cri")
	d := harnesstest.StartContainerdWith(t, c.tools, c.tools.Releases[0], harness.Setup{
		Dir: harnesstest.NewDisk(t), Proxies: []harness.Proxy{c.Proxy()},
		CRI: "[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'thinsnap'\n" +
			"[plugins.'io.containerd.cri.v1.runtime']\n  disable_apparmor = true\n",
	})
	c.fill(t, d, c.images.Busybox, "work")
	uuid := d.Root + "/io.containerd.grpc.v1.introspection/uuid"
	before := c.awaitInstallation(t, uuid)
	require.NoError(t, d.Stop())
	require.NoError(t, os.Truncate(uuid, 0))
	require.NoError(t, d.Start())
	require.NotEqual(t, before, c.awaitInstallation(t, uuid))
	require.Eventually(t, func() bool { return c.Info(t).Client.KeptSnapshots == 0 }, time.Minute, 100*time.Millisecond)
	require.Len(t, c.keys(t), 3)

	require.NoError(t, d.Stop())
	require.NoError(t, d.Start())
	d.Ctr(t, "snapshots", "--snapshotter", harness.ThinsnapName, "rm", "work")
	d.CollectGarbage(t)
	require.Len(t, c.keys(t), 2, "a restarted containerd's collector works at once")
}

// awaitInstallation waits until thinsnap knows the UUID in a containerd's file.
func (c *shared) awaitInstallation(t *testing.T, file string) (uuid string) {
	t.Helper()
	require.Eventually(t, func() bool {
		content, err := os.ReadFile(file)
		uuid = string(content)
		return err == nil && uuid != "" && c.Info(t).Client.Installation == uuid
	}, time.Minute, 100*time.Millisecond)
	return uuid
}

// TestRenamedProxy: under another name of the proxy plugin, containerd's collector removes nothing.
func TestRenamedProxy(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	c := newShared(t, "renamed")
	d := c.containerd(t, harness.ThinsnapName)
	c.fill(t, d, c.images.Busybox, "work")
	before := c.keys(t)
	config := d.Dir + "/config.toml"
	content, err := os.ReadFile(config)
	require.NoError(t, err)
	rename := func(content string) {
		require.NoError(t, d.Stop())
		require.NoError(t, os.WriteFile(config, []byte(content), 0o600))
		require.NoError(t, d.Start())
	}
	rename(strings.NewReplacer("proxy_plugins."+harness.ThinsnapName, "proxy_plugins.renamed",
		fmt.Sprintf("snapshotter = %q", harness.ThinsnapName), `snapshotter = "renamed"`).Replace(string(content)))
	require.ErrorContains(t, c.collect(t, d, "renamed", c.images.Busybox), "snapshots are those of plugin")
	require.Equal(t, before, c.keys(t))

	rename(string(content))
	d.AwaitSnapshotter(t, harness.ThinsnapName)
	d.Ctr(t, "snapshots", "--snapshotter", harness.ThinsnapName, "rm", "work")
	d.CollectGarbage(t) // the image was removed
	require.Empty(t, c.keys(t))
}
