package install

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/clients"
	"github.com/thinsnap/thinsnap/internal/setup"
)

// fakeMachine is a machine in a directory. Its `thinsnap setup` changes containerd's effective
// configuration.
type fakeMachine struct {
	Machine
	commands  []string
	fail      string // the command that fails
	changes   bool   // setup changes the configuration
	dump      setup.Dump
	pool      admin.Pool
	snapshots []admin.Snapshot
	owners    []admin.Owner
	noAnswer  error // the error of Snapshots
}

func newFakeMachine(t *testing.T) *fakeMachine {
	t.Helper()
	m := &fakeMachine{}
	m.Root, m.Run, m.Admin = t.TempDir(), m.run, m
	m.Containerd = func(kind setup.Kind) (Containerd, error) {
		return Containerd{Unit: string(kind) + ".service", Dump: func(context.Context) (setup.Dump, error) { return m.dump, nil }}, nil
	}
	return m
}

func (m *fakeMachine) run(_ context.Context, args ...string) error {
	line := strings.Join(args, " ")
	m.commands = append(m.commands, line)
	if m.fail != "" && strings.HasPrefix(line, m.fail) {
		return errors.New(line + " fails")
	}
	if len(args) > 1 && args[1] == "setup" && m.changes {
		m.dump.Root += "changed"
		m.changes = false
	}
	return nil
}

func (m *fakeMachine) Pool(context.Context) (admin.Pool, error) { return m.pool, nil }

func (m *fakeMachine) Snapshots(context.Context, bool) ([]admin.Snapshot, error) {
	return m.snapshots, m.noAnswer
}

func (m *fakeMachine) Owners(context.Context) (admin.Owners, error) {
	return admin.Owners{Owners: m.owners}, nil
}

// took returns the commands since the last call.
func (m *fakeMachine) took() []string {
	commands := m.commands
	m.commands = nil
	return commands
}

func (m *fakeMachine) write(t *testing.T, path, text string) {
	t.Helper()
	path = m.path(path)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
}

func (m *fakeMachine) read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(m.path(path))
	require.NoError(t, err)
	return string(text)
}

func (m *fakeMachine) files(t *testing.T) (all []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(m.Root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, strings.TrimPrefix(path, m.Root))
		}
		return err
	}))
	return all
}

const (
	theService = "/etc/systemd/system/thinsnap.service"
	theConfig  = "/etc/thinsnap/config.toml"
)

func filesOf(version string) Files {
	return Files{
		Program: []byte("program " + version), Service: []byte("[Service] " + version), Socket: []byte("[Socket]"),
		Config: []byte("version = 1\n"),
	}
}

func TestInstall(t *testing.T) {
	m := newFakeMachine(t)
	m.changes = true
	require.NoError(t, m.Install(t.Context(), filesOf("1"), setup.System, "--default"))
	require.Equal(t, []string{
		"systemctl daemon-reload", "systemctl enable thinsnap.socket thinsnap.service", "systemctl restart thinsnap.service",
		"/usr/local/bin/thinsnap setup containerd --default", "systemctl restart containerd.service",
	}, m.took())
	require.Equal(t, "program 1", m.read(t, programPath))
	info, err := os.Stat(m.path(programPath))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o755), info.Mode())

	t.Run("again", func(t *testing.T) {
		require.NoError(t, m.Install(t.Context(), filesOf("1"), setup.System, "--default"))
		require.Equal(t, []string{
			"systemctl daemon-reload", "systemctl enable thinsnap.socket thinsnap.service", "systemctl start thinsnap.service",
			"/usr/local/bin/thinsnap setup containerd --default",
		}, m.took(), "no restart")
	})
	t.Run("upgrade", func(t *testing.T) {
		require.NoError(t, m.Install(t.Context(), filesOf("2"), setup.System, "--default"))
		commands := m.took()
		require.Contains(t, commands, "systemctl restart thinsnap.service")
		require.NotContains(t, commands, "systemctl restart containerd.service")
		require.Equal(t, "program 2", m.read(t, programPath))
	})
	t.Run("remove", func(t *testing.T) {
		m.write(t, "/etc/thinsnap/notes", "the user's")
		m.changes = true
		require.NoError(t, m.Remove(t.Context(), setup.System))
		require.Equal(t, []string{
			"/proc/self/exe setup containerd --undo", "systemctl restart containerd.service",
			"systemctl disable --now thinsnap.socket thinsnap.service", "systemctl daemon-reload",
		}, m.took())
		require.Equal(t, []string{"/etc/thinsnap/notes"}, m.files(t))
		require.NoError(t, m.Remove(t.Context(), setup.System), "a second time")
	})
}

// TestInstallOnADisk: the unit may use the disk of a direct-lvm pool.
func TestInstallOnADisk(t *testing.T) {
	m := newFakeMachine(t)
	files := filesOf("1")
	files.Config = []byte("version = 1\n[pool.direct_lvm]\ndevice = \"/dev/disk/by-id/virtio-data\"\n")
	require.NoError(t, m.Install(t.Context(), files, setup.K3s))
	dropIn := m.read(t, theService+".d/disk.conf")
	document, err := os.ReadFile("../../docs/pools.md")
	require.NoError(t, err)
	for _, line := range strings.Split(dropIn, "\n")[1:] {
		require.Contains(t, string(document), line)
	}
	require.Contains(t, m.took(), "/usr/local/bin/thinsnap setup k3s")
	require.NoError(t, m.Remove(t.Context(), setup.K3s))
	require.Empty(t, m.files(t))
}

// TestInstallAfterFailure: after a failure of any step, the next run completes the installation.
func TestInstallAfterFailure(t *testing.T) {
	for _, at := range []string{
		"systemctl daemon-reload", "systemctl enable", "systemctl restart thinsnap", "/usr/local/bin/thinsnap setup",
		"systemctl restart containerd",
	} {
		t.Run(at, func(t *testing.T) {
			m := newFakeMachine(t)
			m.changes, m.fail = true, at
			require.ErrorContains(t, m.Install(t.Context(), filesOf("1"), setup.System), at)
			require.Equal(t, at, m.commands[len(m.commands)-1][:len(at)], "no further command")
			m.fail = ""
			m.took()
			require.NoError(t, m.Install(t.Context(), filesOf("1"), setup.System))
			commands := m.took()
			require.Contains(t, commands, "systemctl restart containerd.service")
			wasRestarted := strings.Contains(at, "containerd") || strings.Contains(at, "setup")
			require.Equal(t, !wasRestarted, slices.Contains(commands, "systemctl restart thinsnap.service"))
			require.NoError(t, m.Install(t.Context(), filesOf("2"), setup.System))
			require.Equal(t, "program 2", m.read(t, programPath))
			require.NoError(t, m.Install(t.Context(), filesOf("2"), setup.System))
			require.NotContains(t, m.took(), "systemctl restart containerd.service")
		})
	}
}

func TestInstallRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(t *testing.T, m *fakeMachine, files *Files)
		says    string
	}{
		"the package": {func(t *testing.T, m *fakeMachine, _ *Files) {
			t.Helper()
			m.write(t, "/usr/bin/thinsnap", "the package's")
		}, "package is installed on this machine (/usr/bin/thinsnap)"},
		"the package's unit": {func(t *testing.T, m *fakeMachine, _ *Files) {
			t.Helper()
			m.write(t, "/usr/lib/systemd/system/thinsnap.service", "the package's")
		}, "package is installed"},
		"a unit of the user's": {func(t *testing.T, m *fakeMachine, _ *Files) {
			t.Helper()
			m.write(t, theService, "[Service] mine")
		}, theService + " was changed on this machine, or is not the installer's: move it away"},
		"a configuration of the user's": {func(t *testing.T, m *fakeMachine, _ *Files) {
			t.Helper()
			m.write(t, theConfig, "version = 1\nroot = \"/srv\"\n")
		}, theConfig + " was changed"},
		"an invalid configuration": {func(_ *testing.T, _ *fakeMachine, files *Files) {
			files.Config = []byte("version = 1\n[pool]\nnam = \"x\"\n")
		}, "nam"},
		"a damaged record": {func(t *testing.T, m *fakeMachine, _ *Files) {
			t.Helper()
			m.write(t, recordPath, "{")
		}, recordPath},
	} {
		t.Run(name, func(t *testing.T) {
			m, files := newFakeMachine(t), filesOf("1")
			c.prepare(t, m, &files)
			before := m.files(t)
			require.ErrorContains(t, m.Install(t.Context(), files, setup.System), c.says)
			require.Equal(t, before, m.files(t), "unchanged")
			require.Empty(t, m.took())
		})
	}
}

// TestInstallKeepsEditedFiles: an edited file is neither replaced nor removed.
func TestInstallKeepsEditedFiles(t *testing.T) {
	m := newFakeMachine(t)
	require.NoError(t, m.Install(t.Context(), filesOf("1"), setup.System))
	m.write(t, theConfig, "version = 1\n# mine\n")
	require.ErrorIs(t, m.Install(t.Context(), filesOf("2"), setup.System), errdefs.ErrFailedPrecondition)
	require.Equal(t, "program 1", m.read(t, programPath))
	require.NoError(t, m.Remove(t.Context(), setup.System))
	require.Equal(t, []string{theConfig}, m.files(t))
}

// TestInstallOnABadPool: containerd is not configured for a pool that refuses new snapshots.
func TestInstallOnABadPool(t *testing.T) {
	m := newFakeMachine(t)
	m.pool.Refusal = "the pool is full"
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorContains(t, m.Install(ctx, filesOf("1"), setup.System), "containerd is left as it is: the pool refuses new snapshots: the pool is full")
	require.False(t, slices.ContainsFunc(m.took(), func(c string) bool { return strings.Contains(c, "setup") }))
}

// TestRemoveWhileInUse: containerd keeps the snapshotter while containers use it, but no new
// container gets it. Otherwise it would stay in use: a DaemonSet, such as the one that removes
// thinsnap, replaces a deleted pod at once.
func TestRemoveWhileInUse(t *testing.T) {
	m := newFakeMachine(t)
	require.NoError(t, m.Install(t.Context(), filesOf("1"), setup.System, "--default"))
	m.took()
	m.snapshots = []admin.Snapshot{
		{Key: "k8s.io/1/layer", Kind: admin.KindCommitted},
		{Key: "k8s.io/2/pause", Kind: admin.KindActive}, {Key: "k8s.io/3/proxy", Kind: admin.KindActive}, {Key: "default/4/box", Kind: admin.KindActive},
	}
	pod := &admin.Container{Pod: "kube-proxy-x", PodNamespace: "kube-system"}
	m.owners = []admin.Owner{{Key: "k8s.io/2/pause", Container: pod}, {Key: "k8s.io/3/proxy", Container: pod}, {Key: "k8s.io/1/layer"}}
	before := m.files(t)
	m.changes = true
	for _, commands := range [][]string{
		{"/proc/self/exe setup containerd", "systemctl restart containerd.service"},
		{"/proc/self/exe setup containerd"},
	} {
		err := m.Remove(t.Context(), setup.System)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, "existing ones do, in these pods, snapshots or devices: default/4/box, kube-system/kube-proxy-x: delete")
		require.Equal(t, before, m.files(t))
		require.Equal(t, commands, m.took())
	}
	m.snapshots = m.snapshots[:1]
	require.NoError(t, m.Remove(t.Context(), setup.System), "images may stay")
	require.Empty(t, m.files(t))
}

// TestRemoveWithoutDaemon: if the daemon does not answer, for example after its pod was deleted,
// containers still keep their snapshotter.
func TestRemoveWithoutDaemon(t *testing.T) {
	m := newFakeMachine(t)
	require.NoError(t, m.Configure(t.Context(), []byte("version = 1\n"), setup.System))
	m.took()
	m.noAnswer = admin.ErrNoDaemon
	used := []string{"thinsnap-7"}
	m.InUse = func() ([]string, error) { return used, nil }
	err := m.Remove(t.Context(), setup.System)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "thinsnap-7")
	require.Equal(t, []string{"/proc/self/exe setup containerd"}, m.took())
	used = nil
	require.NoError(t, m.Remove(t.Context(), setup.System))
	require.Equal(t, []string{"/proc/self/exe setup containerd --undo"}, m.took())
}

// TestRemoveWithoutInstallation: the configuration of a package is not the installer's.
func TestRemoveWithoutInstallation(t *testing.T) {
	m := newFakeMachine(t)
	m.write(t, theConfig, "version = 1\n")
	require.NoError(t, m.Remove(t.Context(), setup.System))
	require.Empty(t, m.took())
	require.Equal(t, []string{theConfig}, m.files(t))
}

func TestConfigure(t *testing.T) {
	m := newFakeMachine(t)
	m.changes = true
	require.NoError(t, m.Configure(t.Context(), []byte("version = 1\n"), setup.K3s, "--runtime", "kata-fc"))
	require.Equal(t, []string{"/proc/self/exe setup k3s --runtime kata-fc", "systemctl restart k3s.service"}, m.took())
	err := m.Configure(t.Context(), []byte("version = 1\n[pool.direct_lvm]\ndevice = \"/dev/sdb\"\n"), setup.K3s)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "/run/lock/lvm")
	m.changes = true
	require.NoError(t, m.Remove(t.Context(), setup.K3s))
	require.Equal(t, []string{"/proc/self/exe setup k3s --undo", "systemctl restart k3s.service"}, m.took())
	require.Empty(t, m.files(t))
}

// TestInstallOverAnEarlierRecord: the files of an earlier version of the installer are replaced, and removed.
func TestInstallOverAnEarlierRecord(t *testing.T) {
	m := newFakeMachine(t)
	require.NoError(t, m.Install(t.Context(), filesOf("1"), setup.System))
	written := make(map[string][]string)
	for _, path := range []string{programPath, theConfig, theService, "/etc/systemd/system/thinsnap.socket"} {
		sum := sha256.Sum256([]byte(m.read(t, path)))
		written[path] = []string{strings.Repeat("0", 64), hex.EncodeToString(sum[:])}
	}
	text, err := json.Marshal(map[string]any{"files": written, "restart_unit": "containerd.service"})
	require.NoError(t, err)
	m.write(t, recordPath, string(text))
	require.NoError(t, os.Remove(m.path(filesPath)))
	m.took()

	require.NoError(t, m.Install(t.Context(), filesOf("2"), setup.System))
	require.Equal(t, "program 2", m.read(t, programPath))
	require.Contains(t, m.took(), "systemctl restart containerd.service", "the pending restart")
	require.NotContains(t, m.read(t, recordPath), "files")
	require.NoError(t, m.Remove(t.Context(), setup.System))
	require.Empty(t, m.files(t))
}

// TestConfigureWithoutUnit: the restart of a containerd that systemd does not run is requested until
// it was made.
func TestConfigureWithoutUnit(t *testing.T) {
	m := newFakeMachine(t)
	process := clients.Process{PID: 812, StartTime: 1, BootID: "a"}
	m.Containerd = func(setup.Kind) (Containerd, error) {
		return Containerd{Process: process, Dump: func(context.Context) (setup.Dump, error) { return m.dump, nil }}, nil
	}
	configure := func() error { return m.Configure(t.Context(), []byte("version = 1\n"), setup.System) }
	requireRequest := func(err error) {
		t.Helper()
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, "restart it")
	}
	require.NoError(t, configure(), "nothing has changed")
	m.changes = true
	requireRequest(configure())
	requireRequest(configure())
	process.PID = 0
	requireRequest(configure())
	process.PID, process.StartTime = 813, 2
	require.NoError(t, configure(), "restarted")
	require.NoError(t, configure())

	t.Run("after an interruption", func(t *testing.T) {
		m.changes, m.fail = true, self
		require.Error(t, configure())
		m.fail, m.dump.Root, m.changes = "", "changed before the interruption", false
		process.StartTime++
		requireRequest(configure())
		process.StartTime++
		require.NoError(t, configure())
	})
	t.Run("remove", func(t *testing.T) {
		m.changes = true
		requireRequest(m.Remove(t.Context(), setup.System))
		requireRequest(m.Remove(t.Context(), setup.System))
		process.BootID = "b"
		require.NoError(t, m.Remove(t.Context(), setup.System))
		require.Empty(t, m.files(t))
	})
}

// TestConfigureTwoKinds: the process of one kind of containerd does not count as the restarted process of another
// kind, and the restart of each kind is requested until it was made.
func TestConfigureTwoKinds(t *testing.T) {
	m := newFakeMachine(t)
	processes := map[setup.Kind]clients.Process{
		setup.System: {PID: 812, StartTime: 1, BootID: "a"}, setup.K3s: {PID: 900, StartTime: 2, BootID: "a"},
	}
	m.Containerd = func(kind setup.Kind) (Containerd, error) {
		return Containerd{
			Process: processes[kind], Dump: func(context.Context) (setup.Dump, error) { return m.dump, nil },
		}, nil
	}
	configure := func(kind setup.Kind) error { return m.Configure(t.Context(), []byte("version = 1\n"), kind) }
	m.changes = true
	require.ErrorIs(t, configure(setup.System), errdefs.ErrFailedPrecondition)
	m.changes = true
	require.ErrorIs(t, configure(setup.K3s), errdefs.ErrFailedPrecondition)
	require.ErrorIs(t, configure(setup.System), errdefs.ErrFailedPrecondition, "only the other one's process differs")
	processes[setup.K3s] = clients.Process{PID: 901, StartTime: 3, BootID: "a"}
	require.NoError(t, configure(setup.K3s), "restarted")
	require.ErrorIs(t, configure(setup.System), errdefs.ErrFailedPrecondition)
	processes[setup.System] = clients.Process{PID: 813, StartTime: 4, BootID: "a"}
	require.NoError(t, configure(setup.System), "restarted")
}

// TestConfigureAfterAnEarlierRecord: it has a process, but not its kind, so the restart is requested once more.
func TestConfigureAfterAnEarlierRecord(t *testing.T) {
	m := newFakeMachine(t)
	process := clients.Process{PID: 900, StartTime: 2, BootID: "a"}
	m.Containerd = func(setup.Kind) (Containerd, error) {
		return Containerd{Process: process, Dump: func(context.Context) (setup.Dump, error) { return m.dump, nil }}, nil
	}
	m.write(t, recordPath, `{"restart_unit": "containerd", "restart_process": {"PID": 812, "StartTime": 1, "BootID": "a"}}`)
	configure := func() error { return m.Configure(t.Context(), []byte("version = 1\n"), setup.K3s) }
	require.ErrorIs(t, configure(), errdefs.ErrFailedPrecondition)
	process.StartTime++
	require.NoError(t, configure())
	require.NotContains(t, m.read(t, recordPath), "restart")
}
