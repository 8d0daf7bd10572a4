package systemd

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestNodeInstaller does the work of the pods of deploy/kubernetes/install and remove: in a privileged container of the
// node's own containerd, with the node's PIDs and a program from another file system.
func TestNodeInstaller(t *testing.T) {
	t.Parallel()
	dmtest.RequireThorough(t)
	g := newGuest(t, 0)
	g.serveImages(t)
	g.run(t, "ctr image pull --plain-http "+busybox)
	g.run(t, "mkdir -p /pod /pod-config; cp "+fromHost(t, "../../bin/thinsnap")+" /pod/thinsnap; echo 'version = 1' > /pod-config/config.toml")
	pods := 0
	// The installer restarts containerd, which ends ctr's connections, so ctr run cannot wait for it.
	pod := func(options, command string) (out string, ok bool) {
		pods++
		out = g.run(t, fmt.Sprintf("ctr run --detach --log-uri file:///root/pod%[1]d.log --privileged %[2]s "+
			"--mount type=bind,src=/pod,dst=/pod,options=rbind:ro --mount type=bind,src=/pod-config,dst=/etc/thinsnap,options=rbind:ro "+
			"%[3]s pod%[1]d sh -c '/pod/thinsnap node %[4]s --enter 2>&1; echo status $?' >/dev/null && "+
			"until grep -q '^status' /root/pod%[1]d.log; do sleep 1; done; cat /root/pod%[1]d.log; "+
			"ctr tasks rm --force pod%[1]d >/dev/null; ctr containers rm pod%[1]d", pods, options, busybox, command))
		return out, strings.HasSuffix(out, "status 0")
	}
	const hostPID = "--with-ns pid:/proc/1/ns/pid"
	install := func(t *testing.T) string {
		t.Helper()
		out, ok := pod(hostPID, "install --default")
		require.True(t, ok, out)
		return out
	}
	fails := func(t *testing.T, options, command, says string) {
		t.Helper()
		out, ok := pod(options, command)
		require.False(t, ok, out)
		require.Contains(t, out, says)
	}
	fails(t, "", "install", "hostPID: true")

	require.Contains(t, install(t), `command="systemctl restart containerd.service"`)
	g.run(t, "systemctl is-active thinsnap.service containerd.service; systemctl is-enabled thinsnap.service thinsnap.socket")
	g.run(t, "thinsnap pool status --check")
	t.Log(g.run(t, "containerd config dump | grep -A6 proxy_plugins"))
	g.run(t, "ctr image pull --plain-http --snapshotter thinsnap "+busybox)
	g.run(t, "ctr run --detach --snapshotter thinsnap "+busybox+" box sleep 1000000")
	runs := func() { g.run(t, "ctr tasks exec --exec-id r box sh -c 'echo >> /more; sync'") }
	runs()

	// A second run changes nothing, and the container keeps running.
	pid := func() string { return g.run(t, "systemctl show --value --property=MainPID thinsnap.service") }
	before := pid()
	require.NotContains(t, install(t), `command="systemctl restart`)
	require.Equal(t, before, pid())
	g.run(t, "echo '# changed' >> /pod-config/config.toml")
	require.Contains(t, install(t), `command="systemctl restart thinsnap.service"`)
	require.NotEqual(t, before, pid())
	runs()

	defaultSnapshotter := "containerd config dump | grep -c 'snapshotter = \"thinsnap\"'"
	require.Equal(t, "1", g.run(t, defaultSnapshotter))
	fails(t, hostPID, "remove", "existing ones do, in these pods, snapshots or devices: default/")
	runs()
	g.run(t, "! "+defaultSnapshotter)
	require.Contains(t, g.run(t, "containerd config dump"), "proxy_plugins.thinsnap", "containerd has to remove the container's snapshot")
	g.run(t, "ctr tasks rm --force box; ctr containers rm box")
	// The container was removed before the restarted containerd called thinsnap, which then keeps the snapshot until
	// containerd has made a newer one. A removal of an image waits for containerd's collector.
	g.run(t, "ctr snapshots --snapshotter thinsnap prepare newer; ctr snapshots --snapshotter thinsnap rm newer")
	g.run(t, "ctr images tag "+busybox+" collect; ctr images rm --sync collect")
	g.run(t, "while thinsnap ls | grep -q active; do sleep 1; done")
	out, ok := pod(hostPID, "remove")
	require.True(t, ok, out)
	g.run(t, "! test -e /usr/local/bin/thinsnap && ! test -e /etc/systemd/system/thinsnap.service && ! test -e /etc/thinsnap")
	require.NotContains(t, g.run(t, "containerd config dump"), "thinsnap")
	g.run(t, "systemctl is-active containerd.service; test -e /var/lib/thinsnap/metadata.db")

	// The installer never replaces the package's files.
	g.run(t, "apt-get install --yes "+fromHost(t, deb(t)))
	fails(t, hostPID, "install", "package is installed")
}
