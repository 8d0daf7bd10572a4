package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/genproto/googleapis/rpc/status"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/setup"
	"github.com/thinsnap/thinsnap/internal/unixsocket"
)

// bench is a healthy machine in a directory. A test breaks one part, and runs one check.
type bench struct {
	*machine
	t *testing.T
	// dir has the configuration, thinsnap's root and its sockets.
	dir         string
	missing     map[string]bool // programs
	unit        map[string]string
	socket      map[string]string
	info        admin.Info
	infoErr     error
	blocks      map[string]uint64
	states      []containerdState
	group       []string // the disks of the pool's volume group
	diskMissing bool     // of that group
	config      []string // more lines of the configuration
	// filesystem is the file system of thinsnap's root and of LVM's profiles.
	filesystem unix.Statfs_t
	root       string
	// lvm returns the output of LVM's programs.
	lvm         func(line string) (string, error)
	noSystemctl bool
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir, err := os.MkdirTemp("", "doctor") // sockets need short paths
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	b := &bench{t: t, dir: dir, missing: map[string]bool{}, blocks: map[string]uint64{}, root: filepath.Join(dir, "root")}
	b.filesystem = unix.Statfs_t{Type: unix.EXT4_SUPER_MAGIC, Bsize: 4096, Blocks: 1 << 22, Bavail: 1 << 21}
	b.lvm = func(string) (string, error) { return "  /dev/sdb [ 5.00 GiB]\n  1 disk\n", nil }
	h := host{
		root: filepath.Join(dir, "host"), uid: 0, release: "6.1.0-50-amd64",
		run:       func(_ context.Context, args ...string) (string, error) { return b.run(args) },
		installed: func(name string) bool { return !b.missing[name] },
		targets: func() (map[string]devmapper.Version, error) {
			return map[string]devmapper.Version{"thin": {1, 22, 0}, "thin-pool": {1, 22, 0}}, nil
		},
		isBlock: func(path string) (uint64, bool) {
			number, is := b.blocks[strings.TrimPrefix(path, filepath.Join(dir, "host"))]
			return number, is
		},
		statfs: func(_ string, st *unix.Statfs_t) error {
			*st = b.filesystem
			return nil
		},
		groupDisks: func(context.Context, string) ([]string, bool, error) {
			return slices.Clone(b.group), b.diskMissing, nil
		},
		containerds: func(context.Context) ([]containerdState, error) { return b.states, nil },
	}
	b.machine = newMachine(Options{File: filepath.Join(dir, "config.toml"), Version: "1.2.3"}, h)
	b.write("/etc/os-release", "ID=debian\n")
	b.write("/proc/misc", "236 device-mapper\n237 loop-control\n")
	b.write("/proc/devices", "Character devices:\n  1 mem\n\nBlock devices:\n  7 loop\n  8 sd\n254 device-mapper\n")
	b.write("/dev/mapper/control", "")
	b.write("/dev/loop-control", "")
	b.write("/lib/modules/6.1.0-50-amd64/modules.dep", "kernel/drivers/md/dm-thin-pool.ko.xz: kernel/drivers/md/dm-mod.ko.xz\n")
	b.write("/lib/modules/6.1.0-50-amd64/modules.builtin", "kernel/drivers/block/loop.ko\n")
	b.write("/run/udev/control", "")
	b.write("/usr/lib/udev/rules.d/55-dm.rules", "# rules\n")
	b.write("/run/systemd/system/x", "")
	b.write("/proc/net/unix", "Num RefCount Protocol Flags Type St Inode Path\n"+
		"0000: 00000002 00000000 00010000 0001 01 17 "+b.at("thinsnap.sock")+"\n")
	b.unit = map[string]string{
		"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "UnitFileState": "enabled", "NeedDaemonReload": "no",
		"FragmentPath": "/usr/lib/systemd/system/thinsnap.service", "DevicePolicy": "closed", "StatusText": "the pool is open",
		"DeviceAllow": "block-device-mapper rw\nDeviceAllow=block-loop rw\nDeviceAllow=/dev/mapper/control rw",
	}
	b.socket = map[string]string{
		"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "UnitFileState": "enabled",
		"Listen": b.at("thinsnap.sock") + " (Stream)", "SocketMode": "0600",
	}
	b.info = admin.Info{
		Daemon: admin.Daemon{Version: "1.2.3", Root: b.at("root"), Address: b.at("thinsnap.sock"), PID: 10},
		Pool: admin.Pool{Name: "thinsnap", State: admin.StateReadWrite,
			Data: admin.Space{Level: admin.LevelOK, Available: 1 << 30}, Metadata: admin.Space{Level: admin.LevelOK}},
		Client: admin.ClientInfo{PID: 20, Proxy: "thinsnap", Program: "/usr/bin/containerd", Alive: true, Since: time.Now()},
	}
	b.states = []containerdState{b.containerd()}
	for _, pid := range []int{10, 20} {
		link := b.at(fmt.Sprintf("host/proc/%d/ns/mnt", pid))
		require.NoError(t, os.MkdirAll(filepath.Dir(link), 0o755))
		require.NoError(t, os.Symlink("mnt:[1]", link))
	}
	listener, err := unixsocket.Listen(t.Context(), b.at("thinsnap.sock"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, listener.Close()) })
	return b
}

// plugins are the plugins of a containerd that has loaded the named one, with an error unless
// failure is empty.
func plugins(name, failure string) []*introspection.Plugin {
	p := &introspection.Plugin{Type: snapshotterType, ID: name}
	if failure != "" {
		p.InitErr = &status.Status{Message: failure}
	}
	return []*introspection.Plugin{{Type: snapshotterType, ID: "overlayfs"}, p}
}

// dumped is the output of containerd 2.x for a configuration with thinsnap.
const dumped = `version = 3
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata]
  snapshotter = 'thinsnap'
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'linux/ARCH'
  snapshotter = 'overlayfs'
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'linux/ARCH'
  snapshotter = 'thinsnap'
[proxy_plugins.thinsnap]
  type = 'snapshot'
  address = 'DIR/thinsnap.sock'
  platform = 'linux/ARCH'
  [proxy_plugins.thinsnap.exports]
    root = 'DIR/root'
`

// containerd is a containerd 2.4 that has loaded thinsnap.
func (b *bench) containerd() containerdState {
	b.t.Helper()
	s := containerdState{
		Containerd: setup.Containerd{Kind: setup.System, Executable: "/usr/bin/containerd", Config: "/etc/containerd/config.toml",
			Address: "/run/containerd/containerd.sock", PID: 20, Unit: "containerd.service"},
		release: setup.Release{Major: 2, Minor: 4, Text: "2.4.2"},
		loaded:  plugins("thinsnap", ""),
	}
	b.dump(&s, nil)
	return s
}

// dump replaces parts of a containerd's configuration.
func (b *bench) dump(s *containerdState, replace *strings.Replacer) {
	b.t.Helper()
	text := dumped
	if replace != nil {
		text = replace.Replace(text)
	}
	var err error
	s.config, err = parseContainerd([]byte(strings.NewReplacer("DIR", b.dir, "ARCH", runtime.GOARCH).Replace(text)))
	require.NoError(b.t, err)
}

func (b *bench) at(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) stopped() { b.info, b.infoErr = admin.Info{}, admin.ErrNoDaemon }

// onDisk gives the machine a pool on a disk, which the unit allows.
func (b *bench) onDisk() {
	b.config = []string{"[pool.direct_lvm]", `device = "/dev/sdb"`}
	b.write("/dev/sdb", "")
	b.blocks["/dev/sdb"] = unix.Mkdev(8, 16)
	b.unit["DeviceAllow"] = "/dev/sdb rw"
}

// inGroup puts disks into the pool's volume group.
func (b *bench) inGroup(disks ...string) {
	b.group = disks
	for i, disk := range disks {
		if _, known := b.blocks[disk]; !known {
			b.blocks[disk] = unix.Mkdev(8, uint32(32+16*i))
		}
		b.write(disk, "")
	}
}

func (b *bench) write(name, text string) {
	b.t.Helper()
	path := b.at("host" + name)
	require.NoError(b.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(b.t, os.WriteFile(path, []byte(text), 0o600))
}

func (b *bench) remove(name string) {
	b.t.Helper()
	require.NoError(b.t, os.RemoveAll(b.at("host"+name)))
}

// run returns the output of the host's programs.
func (b *bench) run(args []string) (string, error) {
	switch line := strings.Join(args, " "); {
	case args[0] == "systemctl" && b.noSystemctl:
		return "", errors.New("Failed to connect to bus")
	case strings.HasSuffix(line, serviceUnit):
		return properties(b.unit), nil
	case strings.HasSuffix(line, socketUnit):
		return properties(b.socket), nil
	case line == "lvm version":
		return "  LVM version:     2.03.16(2) (2022-05-18)\n", nil
	case args[0] == "lvmdiskscan":
		return b.lvm(line)
	}
	return "", fmt.Errorf("%s: not found", args[0])
}

func properties(of map[string]string) string {
	var text strings.Builder
	for key, value := range of {
		fmt.Fprintf(&text, "%s=%s\n", key, value)
	}
	return text.String()
}

func (b *bench) look(name string) Result {
	b.t.Helper()
	i := slices.IndexFunc(checks(), func(c check) bool { return c.name == name })
	require.GreaterOrEqual(b.t, i, 0, name)
	return b.ask(checks()[i]).Checks[0]
}

func (b *bench) ask(some ...check) Report {
	b.t.Helper()
	lines := append([]string{
		"version = 1", fmt.Sprintf("root = %q", b.root), fmt.Sprintf("address = %q", b.at("thinsnap.sock")),
		fmt.Sprintf("admin_address = %q", b.at("admin.sock")),
	}, b.config...)
	require.NoError(b.t, os.WriteFile(b.at("config.toml"), []byte(strings.Join(lines, "\n")), 0o600))
	b.start(b.t.Context())
	b.daemon = func() daemonState { return daemonState{b.info, b.infoErr} }
	return ask(b.t.Context(), b.machine, some, patience)
}

// TestAllIsWell: no check reports a problem on a healthy machine.
func TestAllIsWell(t *testing.T) {
	b := newBench(t)
	for _, stopped := range []bool{false, true} {
		if stopped {
			b.info, b.infoErr = admin.Info{}, admin.ErrNoDaemon
		}
		report := b.ask(checks()...)
		for _, r := range report.Checks {
			require.Contains(t, []Status{OK, Skipped}, r.Status, "%+v", r)
			require.NotEmpty(t, r.Seen, r.Name)
			require.Empty(t, r.Remedy, r.Name)
		}
		require.Zero(t, report.Problems+report.Warnings)
	}
}

// TestHangIsBounded: a check that hangs is a problem, and does not stop the others.
func TestHangIsBounded(t *testing.T) {
	b := newBench(t)
	forever := make(chan struct{})
	defer close(forever)
	report := run(t.Context(), b.machine, []check{
		{name: "hangs", look: func(context.Context, *machine) finding { <-forever; return ok("") }},
		{name: "waits", look: func(ctx context.Context, _ *machine) finding { <-ctx.Done(); return problem("ended") }},
		{name: "answers", look: func(context.Context, *machine) finding { return ok("well") }},
	}, 200*time.Millisecond)
	require.Equal(t, 2, report.Problems)
	require.Contains(t, report.Checks[0].Seen, "no answer after 200ms")
	require.NotEmpty(t, report.Checks[0].Remedy)
	require.Equal(t, Result{Name: "waits", Status: Problem, Seen: "ended"}, report.Checks[1])
	require.Equal(t, Result{Name: "answers", Status: OK, Seen: "well"}, report.Checks[2])
}

// TestWithoutRoot: an ordinary user gets the results of the possible checks, and a remedy for the
// others.
func TestWithoutRoot(t *testing.T) {
	b := newBench(t)
	b.host.uid = 1000
	require.Equal(t, Problem, b.look("user").Status)
	require.Equal(t, []string{"sudo thinsnap doctor"}, b.look("user").Remedy)
	require.Equal(t, OK, b.look("kernel").Status)
	require.Equal(t, Skipped, b.look("pool").Status)
}

func TestReportAsJSON(t *testing.T) {
	text, err := json.Marshal(Report{Problems: 1, Checks: []Result{{Name: "kernel", Status: Problem, Seen: "x", Remedy: []string{"y"}}}})
	require.NoError(t, err)
	require.JSONEq(t, `{"checks":[{"name":"kernel","status":"problem","seen":"x","remedy":["y"]}],"problems":1,"warnings":0}`, string(text))
}

func TestPackagesOfDistributions(t *testing.T) {
	b := newBench(t)
	lvm, thin := pkg{"lvm2", "lvm2"}, pkg{"thin-provisioning-tools", "device-mapper-persistent-data"}
	for release, want := range map[string]string{
		"ID=ubuntu\nID_LIKE=debian\n":                  "apt-get install --yes lvm2 thin-provisioning-tools",
		"ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"": "dnf install --assumeyes lvm2 device-mapper-persistent-data",
		"ID=arch\n": "# install with your distribution's tool (the names are Debian's): lvm2 thin-provisioning-tools",
	} {
		b.write("/etc/os-release", release)
		require.Equal(t, want, b.host.install(lvm, lvm, thin))
	}
}

func TestQuote(t *testing.T) {
	require.Equal(t, "/dev/disk/by-id/a:1-2", quote("/dev/disk/by-id/a:1-2"))
	require.Equal(t, `'a b'\''$(c)'`, quote("a b'$(c)"))
	require.Equal(t, "''", quote(""))
}

// TestChecksAreDocumented: the table of docs/troubleshooting.md has each check.
func TestChecksAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/troubleshooting.md")
	require.NoError(t, err)
	_, table, found := strings.Cut(string(text), "| check | what it looks at |\n")
	require.True(t, found)
	table, _, _ = strings.Cut(table, "\n\n")
	var documented []string
	for row := range strings.Lines(table) {
		names, _, _ := strings.Cut(strings.TrimPrefix(row, "| "), " | ")
		for _, name := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(names, -1) {
			documented = append(documented, name[1])
		}
	}
	var names []string
	for _, c := range checks() {
		names = append(names, c.name)
	}
	require.ElementsMatch(t, names, documented)
}
