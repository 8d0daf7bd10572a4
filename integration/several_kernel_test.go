package integration

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// keysOf returns the keys of a client's snapshots in thinsnap, as the client knows them.
func keysOf(t *testing.T, s *harnesstest.Thinsnap, client string) []string {
	t.Helper()
	snapshots, err := s.Admin().Snapshots(t.Context(), false)
	require.NoError(t, err)
	all := []string{}
	for _, snapshot := range snapshots {
		key, marked := strings.CutPrefix(snapshot.Key, "@"+client+"/")
		require.Equal(t, snapshot.Client == client && client != "default", marked)
		if snapshot.Client == client {
			all = append(all, key)
		}
	}
	return all
}

// runDetached starts a container that writes a word to its file system and keeps running.
func runDetached(t *testing.T, d *harnesstest.Containerd, image, id, word string) {
	t.Helper()
	d.Ctr(t, "run", "--detach", "--snapshotter", harness.ThinsnapName, image, id, "sh", "-c",
		"echo "+word+" > /written; sync; exec sleep 100000")
	requireWritten(t, d, id, word)
}

func requireWritten(t *testing.T, d *harnesstest.Containerd, id, word string) {
	t.Helper()
	require.Eventually(t, func() bool {
		written, err := d.TryCtr("tasks", "exec", "--exec-id", "look", id, "cat", "/written")
		return err == nil && written == word
	}, time.Minute, 100*time.Millisecond)
}

// TestSeveralClients has a containerd of each release use one thinsnap, with the same images and the same keys. Neither
// the actions of one client nor changes to its configuration affect the other.
func TestSeveralClients(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.RequireThorough(t) // takes minutes in an emulated guest
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	s := harnesstest.StartThinsnapWith(t, tools, "several", harness.Options{Clients: []string{"k3s"}})
	images := harnesstest.StartRegistry(t, tools)
	image := images.Busybox
	start := func(release int, p harness.Proxy) *harnesstest.Containerd {
		return harnesstest.StartContainerdWith(t, tools, tools.Releases[release], harness.Setup{
			Dir: harnesstest.NewDisk(t), Proxies: []harness.Proxy{p}, Namespace: "clients",
		})
	}
	one, other := start(0, s.Proxy()), start(1, s.ProxyOf("k3s"))
	for _, d := range []*harnesstest.Containerd{one, other} {
		d.Pull(t, harness.ThinsnapName, image)
		d.Ctr(t, "snapshots", "--snapshotter", harness.ThinsnapName, "prepare", "work", d.TopLayer(t, harness.ThinsnapName))
	}
	require.Len(t, keysOf(t, s, "default"), 3)
	// The snapshots have the same keys, apart from the releases' prefixes.
	names := func(keys []string) (all []string) {
		for _, key := range keys {
			all = append(all, key[strings.LastIndexByte(key, '/')+1:])
		}
		return all
	}
	require.ElementsMatch(t, names(keysOf(t, s, "default")), names(keysOf(t, s, "k3s")))
	runDetached(t, one, image, "one", "first")
	runDetached(t, other, image, "other", "second")
	require.Len(t, one.Snapshots(t, harness.ThinsnapName), 4)
	info := s.Info(t)
	require.Equal(t, admin.SnapshotCounts{Active: 2, Committed: 2}, info.Client.Snapshots)
	require.Len(t, info.Clients, 1)
	require.Equal(t, admin.SnapshotCounts{Active: 2, Committed: 2}, info.Clients[0].Snapshots)
	require.NotEqual(t, info.Client.PID, info.Clients[0].PID)

	// The default client removes everything, and its collector runs.
	before := keysOf(t, s, "k3s")
	require.NoError(t, one.RemoveAll())
	one.Ctr(t, "snapshots", "--snapshotter", harness.ThinsnapName, "rm", "work")
	one.CollectGarbage(t)
	require.Empty(t, keysOf(t, s, "default"))
	require.Equal(t, before, keysOf(t, s, "k3s"))
	requireWritten(t, other, "other", "second")

	// thinsnap crashes, and the other containerd restarts, whose collector runs at once.
	s.Kill()
	s.Start(t)
	require.NoError(t, other.Stop())
	require.NoError(t, other.Start())
	other.AwaitSnapshotter(t, harness.ThinsnapName)
	other.Ctr(t, "snapshots", "--snapshotter", harness.ThinsnapName, "rm", "work")
	other.CollectGarbage(t)
	before = keysOf(t, s, "k3s")
	require.Len(t, before, 3)
	requireWritten(t, other, "other", "second")

	// Without its entry the client has no socket, and nothing removes its snapshots.
	configured, err := os.ReadFile(s.Config())
	require.NoError(t, err)
	alone, _, found := strings.Cut(string(configured), "[[clients]]")
	require.True(t, found)
	reconfigure := func(text string) {
		t.Helper()
		s.Stop(t)
		require.NoError(t, os.WriteFile(s.Config(), []byte(text), 0o600))
		s.Start(t)
	}
	reconfigure(alone)
	one.AwaitSnapshotter(t, harness.ThinsnapName)
	one.Pull(t, harness.ThinsnapName, image)
	one.RemoveImage(t, image)
	other.CollectGarbage(t)
	require.Equal(t, before, keysOf(t, s, "k3s"))
	require.Empty(t, keysOf(t, s, "default"))
	require.Contains(t, s.Run(t, "info"), `Client k3s: not configured; "thinsnap client remove k3s" removes its snapshots`)
	_, err = s.TryRun(nil, "client", "remove", "k3s")
	require.ErrorContains(t, err, "add --yes")
	_, err = s.TryRun(nil, "client", "remove", "--yes", "k3s")
	require.ErrorContains(t, err, "is in use")
	require.Equal(t, before, keysOf(t, s, "k3s"))

	// With the entry, the client works as before.
	reconfigure(string(configured))
	other.AwaitSnapshotter(t, harness.ThinsnapName)
	requireWritten(t, other, "other", "second")
	runDetached(t, other, image, "third", "third")
	_, err = s.TryRun(nil, "client", "remove", "--yes", "k3s")
	require.ErrorContains(t, err, "is configured")
	require.Contains(t, s.Run(t, "inspect", "@k3s/"+before[0]), "@k3s/"+before[0])
	require.NoError(t, other.RemoveAll())
	other.CollectGarbage(t)
	require.Empty(t, keysOf(t, s, "k3s"))

	// A command removes a client that is gone for good.
	other.Pull(t, harness.ThinsnapName, image)
	require.Len(t, keysOf(t, s, "k3s"), 2)
	require.NoError(t, other.Stop())
	reconfigure(alone)
	require.Contains(t, s.Run(t, "client", "remove", "--yes", "k3s"), "with 2 snapshots")
	require.Empty(t, s.Info(t).Clients)
	require.Empty(t, keysOf(t, s, "k3s"))
	s.Run(t, "check")
	reconfigure(string(configured))
	require.NoError(t, other.Start())
	require.NoError(t, other.RemoveAll())
}

// TestExchangedAddresses: two containerds with the same image, and the same keys for its layers, exchange their
// addresses. Neither's collector removes snapshots of the other's key space, even if thinsnap cannot ask a containerd
// for its identity. At their own addresses they continue.
func TestExchangedAddresses(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.RequireThorough(t)
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	for _, tells := range []bool{true, false} {
		t.Run(map[bool]string{true: "told", false: "silent"}[tells], func(t *testing.T) {
			s := harnesstest.StartThinsnapWith(t, tools, "exchanged", harness.Options{Clients: []string{"k3s"}})
			image := harnesstest.StartRegistry(t, tools).Busybox
			addresses := []string{s.Proxy().Address, s.ProxyOf("k3s").Address}
			var all []*harnesstest.Containerd
			for i, p := range []harness.Proxy{s.Proxy(), s.ProxyOf("k3s")} {
				d := harnesstest.StartContainerdWith(t, tools, tools.Releases[0], harness.Setup{
					Dir: harnesstest.NewDisk(t), Proxies: []harness.Proxy{p}, Namespace: "clients",
				})
				all = append(all, d)
				if !tells {
					edit(t, d, `disabled_plugins = [`, `disabled_plugins = ["io.containerd.grpc.v1.introspection", `)
				}
				d.Pull(t, harness.ThinsnapName, image)
				d.Ctr(t, "snapshots", "--snapshotter", harness.ThinsnapName, "prepare", []string{"one", "other"}[i],
					d.TopLayer(t, harness.ThinsnapName))
			}
			if tells {
				require.Eventually(t, func() bool {
					info := s.Info(t)
					return info.Client.Installation != "" && info.Clients[0].Installation != ""
				}, time.Minute, 100*time.Millisecond)
			}
			before := map[string][]string{"default": keysOf(t, s, "default"), "k3s": keysOf(t, s, "k3s")}
			exchange := func() {
				t.Helper()
				for i, d := range all {
					edit(t, d, addresses[i], addresses[1-i])
				}
				addresses[0], addresses[1] = addresses[1], addresses[0]
				for _, d := range all {
					d.AwaitSnapshotter(t, harness.ThinsnapName)
					for range 8 { // its keys' numbers then exceed all existing ones
						d.Ctr(t, "snapshots", "--snapshotter", harness.ThinsnapName, "prepare", "gone", "")
						d.Ctr(t, "snapshots", "--snapshotter", harness.ThinsnapName, "rm", "gone")
					}
					d.CollectGarbage(t)
				}
				for client, keys := range before {
					require.Subset(t, keysOf(t, s, client), keys, client)
				}
			}
			exchange()
			require.NotZero(t, s.Info(t).Client.KeptSnapshots)
			s.Kill()
			s.Start(t)
			exchange()
			if !tells {
				s.Run(t, "client", "accept")
				s.Run(t, "client", "accept", "k3s")
			}
			for i, d := range all {
				d.Ctr(t, "snapshots", "--snapshotter", harness.ThinsnapName, "rm", []string{"one", "other"}[i])
				d.RemoveImage(t, image)
				d.CollectGarbage(t)
			}
			require.Empty(t, keysOf(t, s, "default"))
			require.Empty(t, keysOf(t, s, "k3s"))
		})
	}
}

// edit replaces a text in a containerd's configuration, and restarts the containerd.
func edit(t *testing.T, d *harnesstest.Containerd, text, by string) {
	t.Helper()
	content, err := os.ReadFile(d.Config())
	require.NoError(t, err)
	require.Contains(t, string(content), text)
	require.NoError(t, d.Stop())
	require.NoError(t, os.WriteFile(d.Config(), []byte(strings.ReplaceAll(string(content), text, by)), 0o600))
	require.NoError(t, d.Start())
}
