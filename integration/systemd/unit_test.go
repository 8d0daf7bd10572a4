package systemd

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// busybox is a small image with a shell.
const busybox = registry + "/busybox:thinsnap"

// configure makes Debian's containerd use thinsnap, as docs/getting-started.md says for 1.6.
func (g *guest) configure(t *testing.T) {
	t.Helper()
	g.run(t, "mkdir -p /etc/containerd")
	g.write(t, "/etc/containerd/config.toml", `version = 2
[proxy_plugins.thinsnap]
  type = "snapshot"
  address = "/run/thinsnap/thinsnap.sock"`)
	g.run(t, "systemctl restart containerd")
}

// start runs a container with a file that no other has.
func (g *guest) start(t *testing.T, name string) {
	t.Helper()
	g.run(t, "ctr image pull --snapshotter thinsnap "+busybox)
	g.run(t, "ctr run --detach --snapshotter thinsnap "+busybox+" "+name+" sleep 1000000")
	g.run(t, "ctr tasks exec --exec-id w "+name+" sh -c 'echo mine > /kept; sync'")
	g.requireRuns(t, name)
}

// requireRuns: a container has its file, and can write.
func (g *guest) requireRuns(t *testing.T, name string) {
	t.Helper()
	require.Equal(t, "mine", g.run(t, "ctr tasks exec --exec-id r "+name+" sh -c 'cat /kept; echo >> /more; sync'"))
}

// startAgain starts a container's task again after a reboot.
func (g *guest) startAgain(t *testing.T, name string) {
	t.Helper()
	g.try("ctr tasks rm --force " + name) //nolint:errcheck // containerd may have no task of it
	g.run(t, "ctr tasks start --detach "+name)
	g.requireRuns(t, name)
}

// property returns a property of thinsnap's unit.
func (g *guest) property(t *testing.T, name string) string {
	t.Helper()
	return g.run(t, "systemctl show --value --property="+name+" thinsnap.service")
}

// TestUnit tests the properties of the unit on a machine with Debian's containerd.
func TestUnit(t *testing.T) {
	t.Parallel()
	dmtest.RequireThorough(t)
	g := newGuest(t, 0)
	g.run(t, "apt-get install --yes "+fromHost(t, deb(t)))
	require.Equal(t, "disabled", g.run(t, "systemctl is-enabled thinsnap.service thinsnap.socket thinsnap-trim.timer | sort -u || true"))
	g.run(t, "systemctl enable --now thinsnap")
	g.configure(t)
	g.serveImages(t)
	g.start(t, "box")

	t.Run("order", func(t *testing.T) {
		before := strings.Fields(g.property(t, "Before"))
		require.Contains(t, before, "containerd.service")
		for _, property := range []string{"After", "Wants"} {
			require.Contains(t, strings.Fields(g.property(t, property)), "thinsnap.socket")
		}
	})
	t.Run("devices", func(t *testing.T) {
		// A shell in the unit's control group has access to the unit's devices.
		in := `echo $$ > /sys/fs/cgroup/system.slice/thinsnap.service/cgroup.procs; `
		for device, allowed := range map[string]bool{
			"/dev/mapper/control": true, "/dev/loop-control": true, "/dev/loop0": true, "/dev/null": true,
			"/dev/fuse": false, "/dev/kmsg": false, "/dev/vda": false, "/dev/mem": false,
		} {
			_, err := g.try(in + "exec 3<" + device)
			require.Equal(t, allowed, err == nil, device)
		}
	})
	t.Run("security", func(t *testing.T) {
		g.run(t, "systemd-analyze security --threshold=42 thinsnap.service")
		g.run(t, "systemd-analyze security --threshold=15 thinsnap-trim.service")
	})
	t.Run("restart", func(t *testing.T) {
		// The calls begin after the restart, which takes an emulated guest longer than the second that containerd
		// waits. TestUnderSystemd calls thinsnap during a restart.
		g.run(t, "systemctl restart thinsnap")
		g.eventually(t, "ctr snapshots --snapshotter thinsnap ls")
		g.requireRuns(t, "box")
	})
	t.Run("killed", func(t *testing.T) {
		g.run(t, "kill -9 "+g.property(t, "MainPID"))
		g.eventually(t, "ctr snapshots --snapshotter thinsnap ls")
		g.requireRuns(t, "box")
	})
	t.Run("bad configuration", func(t *testing.T) {
		g.run(t, "echo nonsense = 1 >> /etc/thinsnap/config.toml; ! systemctl restart thinsnap")
		require.Equal(t, "exit-code 78", g.property(t, "Result")+" "+g.property(t, "ExecMainStatus"))
		// containerd connects repeatedly, and each time the socket starts thinsnap, until the socket fails, too.
		g.run(t, "! ctr snapshots --snapshotter thinsnap ls")
		g.eventually(t, "systemctl is-failed thinsnap.socket && systemctl is-failed thinsnap.service")
		started := g.property(t, "ExecMainStartTimestampMonotonic")
		g.run(t, "! ctr snapshots --snapshotter thinsnap ls; sleep 10")
		require.Equal(t, started, g.property(t, "ExecMainStartTimestampMonotonic"))
		g.run(t, "sed -i '/nonsense/d' /etc/thinsnap/config.toml; systemctl restart thinsnap")
		g.eventually(t, "ctr snapshots --snapshotter thinsnap ls") // thinsnap has made the socket itself
		g.eventually(t, "systemctl restart thinsnap; sleep 5; systemctl is-active thinsnap.socket")
		g.requireRuns(t, "box")
	})
	t.Run("trim", func(t *testing.T) {
		g.run(t, "systemctl start thinsnap-trim.service")
		require.Contains(t, g.run(t, "journalctl --unit=thinsnap-trim.service"), "Snapshots Trimmed: 1")
		g.run(t, "systemctl enable --now thinsnap-trim.timer; systemctl is-active thinsnap-trim.timer")
		g.run(t, "systemctl stop thinsnap.socket thinsnap.service; ! systemctl start thinsnap-trim.service")
		require.Equal(t, "inactive", g.output("systemctl is-failed thinsnap-trim.service || true"))
		g.run(t, "systemctl start thinsnap")
	})
	t.Run("udev", func(t *testing.T) {
		g.run(t, `set -e; for i in $(seq 30); do
			ctr snapshots --snapshotter thinsnap prepare gone$i; ctr snapshots --snapshotter thinsnap rm gone$i; done
			udevadm settle`)
		require.Equal(t, g.run(t, "dmsetup info --columns --noheadings --options name | sort"),
			g.run(t, "ls /dev/mapper | grep -v control | sort"), "a node for each device, and for no other")
		g.run(t, "! journalctl --boot --unit=systemd-udevd.service | grep -i -e error -e fail")
		g.run(t, "thinsnap check")
	})

	t.Run("a power cut", func(t *testing.T) {
		g.cut(t)
		g.startAgain(t, "box")
		g.run(t, "thinsnap check")
	})
	t.Run("removal and purge", func(t *testing.T) { testRemoval(t, g) })
}

// testRemoval: containers keep running, and the pool stays.
func testRemoval(t *testing.T, g *guest) {
	g.run(t, "apt-get remove --yes thinsnap")
	g.requireRuns(t, "box")
	g.run(t, "! systemctl is-active thinsnap.service thinsnap.socket thinsnap-trim.timer; test -e /var/lib/thinsnap/pool/data")
	require.Contains(t, g.run(t, "apt-get purge --yes thinsnap"), "thinsnap: /var/lib/thinsnap is kept, with the pool")
	g.requireRuns(t, "box")
	g.run(t, "! find /etc -name '*thinsnap*' | grep .")
	g.reboot(t)
	g.run(t, "test -e /var/lib/thinsnap/pool/data; apt-get install --yes "+fromHost(t, deb(t))+"; systemctl enable --now thinsnap")
	g.startAgain(t, "box")
	g.run(t, "thinsnap check")
}

// TestUpgrade: containers keep running while an earlier version is replaced.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	dmtest.RequireThorough(t)
	before := debEarlier(t)
	g := newGuest(t, 0)
	g.run(t, "apt-get install --yes "+fromHost(t, before))
	g.run(t, "systemctl enable --now thinsnap")
	g.configure(t)
	g.serveImages(t)
	g.start(t, "box")
	pid := g.run(t, "ctr tasks ls | awk '$1 == \"box\" { print $2 }'")
	version := g.run(t, "thinsnap version")
	g.run(t, "apt-get install --yes "+fromHost(t, deb(t)))
	require.NotEqual(t, version, g.run(t, "thinsnap version"))
	require.Equal(t, "active", g.run(t, "systemctl is-active thinsnap.service thinsnap.socket | sort -u"))
	require.Equal(t, "disabled", g.run(t, "systemctl is-enabled thinsnap-trim.timer || true"))
	g.requireRuns(t, "box")
	require.Equal(t, pid, g.run(t, "ctr tasks ls | awk '$1 == \"box\" { print $2 }'"), "it is the same process")
	g.run(t, "ctr run --rm --snapshotter thinsnap "+busybox+" second true; thinsnap check")
	g.reboot(t)
	g.startAgain(t, "box")
	g.run(t, "thinsnap check")
}
