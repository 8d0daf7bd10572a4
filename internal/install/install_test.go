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
	"github.com/thinsnap/thinsnap/internal/setup"
)

// bench is a machine in a directory. Its `thinsnap setup` changes containerd's effective
// configuration.
type bench struct {
	Machine
	commands  []string
	fail      string // the command that fails
	changes   bool   // setup changes the configuration
	dump      setup.Dump
	pool      admin.Pool
	snapshots []admin.Snapshot
	owners    []admin.Owner
	silent    error // the error of the daemon's answer
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{}
	b.Root, b.Run, b.Admin = t.TempDir(), b.run, b
	b.Containerd = func(kind setup.Kind) (Containerd, error) {
		return Containerd{Unit: string(kind) + ".service", Dump: func(context.Context) (setup.Dump, error) { return b.dump, nil }}, nil
	}
	return b
}

func (b *bench) run(_ context.Context, args ...string) error {
	line := strings.Join(args, " ")
	b.commands = append(b.commands, line)
	if b.fail != "" && strings.HasPrefix(line, b.fail) {
		return errors.New(line + " fails")
	}
	if len(args) > 1 && args[1] == "setup" && b.changes {
		b.dump.Root += "changed"
		b.changes = false
	}
	return nil
}

func (b *bench) Pool(context.Context) (admin.Pool, error) { return b.pool, nil }

func (b *bench) Snapshots(context.Context, bool) ([]admin.Snapshot, error) {
	return b.snapshots, b.silent
}

func (b *bench) Owners(context.Context) (admin.Owners, error) {
	return admin.Owners{Owners: b.owners}, nil
}

// took returns the commands since the last call.
func (b *bench) took() []string {
	commands := b.commands
	b.commands = nil
	return commands
}

func (b *bench) write(t *testing.T, path, text string) {
	t.Helper()
	path = b.path(path)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
}

func (b *bench) read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(b.path(path))
	require.NoError(t, err)
	return string(text)
}

func (b *bench) files(t *testing.T) (all []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(b.Root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, strings.TrimPrefix(path, b.Root))
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
	b := newBench(t)
	b.changes = true
	require.NoError(t, b.Install(t.Context(), filesOf("1"), setup.System, "--default"))
	require.Equal(t, []string{
		"systemctl daemon-reload", "systemctl enable thinsnap.socket thinsnap.service", "systemctl restart thinsnap.service",
		"/usr/local/bin/thinsnap setup containerd --default", "systemctl restart containerd.service",
	}, b.took())
	require.Equal(t, "program 1", b.read(t, programPath))
	info, err := os.Stat(b.path(programPath))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o755), info.Mode())

	t.Run("again", func(t *testing.T) {
		require.NoError(t, b.Install(t.Context(), filesOf("1"), setup.System, "--default"))
		require.Equal(t, []string{
			"systemctl daemon-reload", "systemctl enable thinsnap.socket thinsnap.service", "systemctl start thinsnap.service",
			"/usr/local/bin/thinsnap setup containerd --default",
		}, b.took(), "no restart")
	})
	t.Run("upgrade", func(t *testing.T) {
		require.NoError(t, b.Install(t.Context(), filesOf("2"), setup.System, "--default"))
		commands := b.took()
		require.Contains(t, commands, "systemctl restart thinsnap.service")
		require.NotContains(t, commands, "systemctl restart containerd.service")
		require.Equal(t, "program 2", b.read(t, programPath))
	})
	t.Run("remove", func(t *testing.T) {
		b.write(t, "/etc/thinsnap/notes", "the user's")
		b.changes = true
		require.NoError(t, b.Remove(t.Context(), setup.System))
		require.Equal(t, []string{
			"/proc/self/exe setup containerd --undo", "systemctl restart containerd.service",
			"systemctl disable --now thinsnap.socket thinsnap.service", "systemctl daemon-reload",
		}, b.took())
		require.Equal(t, []string{"/etc/thinsnap/notes"}, b.files(t))
		require.NoError(t, b.Remove(t.Context(), setup.System), "a second time")
	})
}

// TestInstallOnADisk: the unit may use the disk of a direct-lvm pool.
func TestInstallOnADisk(t *testing.T) {
	b := newBench(t)
	files := filesOf("1")
	files.Config = []byte("version = 1\n[pool.direct_lvm]\ndevice = \"/dev/disk/by-id/virtio-data\"\n")
	require.NoError(t, b.Install(t.Context(), files, setup.K3s))
	dropIn := b.read(t, theService+".d/disk.conf")
	document, err := os.ReadFile("../../docs/pools.md")
	require.NoError(t, err)
	for _, line := range strings.Split(dropIn, "\n")[1:] {
		require.Contains(t, string(document), line)
	}
	require.Contains(t, b.took(), "/usr/local/bin/thinsnap setup k3s")
	require.NoError(t, b.Remove(t.Context(), setup.K3s))
	require.Empty(t, b.files(t))
}

// TestInstallOfAnInterruption: after a failure of any step, the next run completes the installation.
func TestInstallOfAnInterruption(t *testing.T) {
	for _, at := range []string{
		"systemctl daemon-reload", "systemctl enable", "systemctl restart thinsnap", "/usr/local/bin/thinsnap setup",
		"systemctl restart containerd",
	} {
		t.Run(at, func(t *testing.T) {
			b := newBench(t)
			b.changes, b.fail = true, at
			require.ErrorContains(t, b.Install(t.Context(), filesOf("1"), setup.System), at)
			require.Equal(t, at, b.commands[len(b.commands)-1][:len(at)], "no further command")
			b.fail = ""
			b.took()
			require.NoError(t, b.Install(t.Context(), filesOf("1"), setup.System))
			commands := b.took()
			require.Contains(t, commands, "systemctl restart containerd.service")
			wasRestarted := strings.Contains(at, "containerd") || strings.Contains(at, "setup")
			require.Equal(t, !wasRestarted, slices.Contains(commands, "systemctl restart thinsnap.service"))
			require.NoError(t, b.Install(t.Context(), filesOf("2"), setup.System))
			require.Equal(t, "program 2", b.read(t, programPath))
			require.NoError(t, b.Install(t.Context(), filesOf("2"), setup.System))
			require.NotContains(t, b.took(), "systemctl restart containerd.service")
		})
	}
}

func TestInstallRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(t *testing.T, b *bench, files *Files)
		says    string
	}{
		"the package": {func(t *testing.T, b *bench, _ *Files) {
			t.Helper()
			b.write(t, "/usr/bin/thinsnap", "the package's")
		}, "package is installed on this machine (/usr/bin/thinsnap)"},
		"the package's unit": {func(t *testing.T, b *bench, _ *Files) {
			t.Helper()
			b.write(t, "/usr/lib/systemd/system/thinsnap.service", "the package's")
		}, "package is installed"},
		"a unit of the user's": {func(t *testing.T, b *bench, _ *Files) {
			t.Helper()
			b.write(t, theService, "[Service] mine")
		}, theService + " was changed on this machine, or is not the installer's: move it away"},
		"a configuration of the user's": {func(t *testing.T, b *bench, _ *Files) {
			t.Helper()
			b.write(t, theConfig, "version = 1\nroot = \"/srv\"\n")
		}, theConfig + " was changed"},
		"an invalid configuration": {func(_ *testing.T, _ *bench, files *Files) {
			files.Config = []byte("version = 1\n[pool]\nnam = \"x\"\n")
		}, "nam"},
		"a damaged record": {func(t *testing.T, b *bench, _ *Files) {
			t.Helper()
			b.write(t, recordPath, "{")
		}, recordPath},
	} {
		t.Run(name, func(t *testing.T) {
			b, files := newBench(t), filesOf("1")
			c.prepare(t, b, &files)
			before := b.files(t)
			require.ErrorContains(t, b.Install(t.Context(), files, setup.System), c.says)
			require.Equal(t, before, b.files(t), "unchanged")
			require.Empty(t, b.took())
		})
	}
}

// TestInstallKeepsWhatWasEdited: an edited file is neither replaced nor removed.
func TestInstallKeepsWhatWasEdited(t *testing.T) {
	b := newBench(t)
	require.NoError(t, b.Install(t.Context(), filesOf("1"), setup.System))
	b.write(t, theConfig, "version = 1\n# mine\n")
	require.ErrorIs(t, b.Install(t.Context(), filesOf("2"), setup.System), errdefs.ErrFailedPrecondition)
	require.Equal(t, "program 1", b.read(t, programPath))
	require.NoError(t, b.Remove(t.Context(), setup.System))
	require.Equal(t, []string{theConfig}, b.files(t))
}

// TestInstallOnABadPool: containerd is not configured for a daemon that refuses all snapshots.
func TestInstallOnABadPool(t *testing.T) {
	b := newBench(t)
	b.pool.Refusal = "the pool is full"
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorContains(t, b.Install(ctx, filesOf("1"), setup.System), "containerd is left as it is: the pool refuses new snapshots: the pool is full")
	require.False(t, slices.ContainsFunc(b.took(), func(c string) bool { return strings.Contains(c, "setup") }))
}

// TestRemoveWhileInUse: containerd keeps the snapshotter while containers use it, but no new
// container gets it. Otherwise it would stay in use: a DaemonSet, such as the one that removes
// thinsnap, replaces a deleted pod at once.
func TestRemoveWhileInUse(t *testing.T) {
	b := newBench(t)
	require.NoError(t, b.Install(t.Context(), filesOf("1"), setup.System, "--default"))
	b.took()
	b.snapshots = []admin.Snapshot{
		{Key: "k8s.io/1/layer", Kind: admin.KindCommitted},
		{Key: "k8s.io/2/pause", Kind: admin.KindActive}, {Key: "k8s.io/3/proxy", Kind: admin.KindActive}, {Key: "default/4/box", Kind: admin.KindActive},
	}
	pod := &admin.Container{Pod: "kube-proxy-x", PodNamespace: "kube-system"}
	b.owners = []admin.Owner{{Key: "k8s.io/2/pause", Container: pod}, {Key: "k8s.io/3/proxy", Container: pod}, {Key: "k8s.io/1/layer"}}
	before := b.files(t)
	b.changes = true
	for _, commands := range [][]string{
		{"/proc/self/exe setup containerd", "systemctl restart containerd.service"},
		{"/proc/self/exe setup containerd"},
	} {
		err := b.Remove(t.Context(), setup.System)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, "new containers do not use thinsnap from now on, but these do: default/4/box, kube-system/kube-proxy-x: delete")
		require.Equal(t, before, b.files(t))
		require.Equal(t, commands, b.took())
	}
	b.snapshots = b.snapshots[:1]
	require.NoError(t, b.Remove(t.Context(), setup.System), "images may stay")
	require.Empty(t, b.files(t))
}

// TestRemoveWithoutDaemon: if the daemon does not answer, for example after its pod was deleted,
// containers still keep their snapshotter.
func TestRemoveWithoutDaemon(t *testing.T) {
	b := newBench(t)
	require.NoError(t, b.Configure(t.Context(), []byte("version = 1\n"), setup.System))
	b.took()
	b.silent = admin.ErrNoDaemon
	used := []string{"thinsnap-7"}
	b.InUse = func() ([]string, error) { return used, nil }
	err := b.Remove(t.Context(), setup.System)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "thinsnap-7")
	require.Equal(t, []string{"/proc/self/exe setup containerd"}, b.took())
	used = nil
	require.NoError(t, b.Remove(t.Context(), setup.System))
	require.Equal(t, []string{"/proc/self/exe setup containerd --undo"}, b.took())
}

// TestRemoveWithoutInstallation: the configuration of a package is not the installer's.
func TestRemoveWithoutInstallation(t *testing.T) {
	b := newBench(t)
	b.write(t, theConfig, "version = 1\n")
	require.NoError(t, b.Remove(t.Context(), setup.System))
	require.Empty(t, b.took())
	require.Equal(t, []string{theConfig}, b.files(t))
}

func TestConfigure(t *testing.T) {
	b := newBench(t)
	b.changes = true
	require.NoError(t, b.Configure(t.Context(), []byte("version = 1\n"), setup.K3s, "--runtime", "kata-fc"))
	require.Equal(t, []string{"/proc/self/exe setup k3s --runtime kata-fc", "systemctl restart k3s.service"}, b.took())
	err := b.Configure(t.Context(), []byte("version = 1\n[pool.direct_lvm]\ndevice = \"/dev/sdb\"\n"), setup.K3s)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "/run/lock/lvm")
	b.changes = true
	require.NoError(t, b.Remove(t.Context(), setup.K3s))
	require.Equal(t, []string{"/proc/self/exe setup k3s --undo", "systemctl restart k3s.service"}, b.took())
	require.Empty(t, b.files(t))
}

// TestInstallOverAnEarlierRecord: the files of an earlier version of the installer are replaced, and removed.
func TestInstallOverAnEarlierRecord(t *testing.T) {
	b := newBench(t)
	require.NoError(t, b.Install(t.Context(), filesOf("1"), setup.System))
	written := make(map[string][]string)
	for _, path := range []string{programPath, theConfig, theService, "/etc/systemd/system/thinsnap.socket"} {
		sum := sha256.Sum256([]byte(b.read(t, path)))
		written[path] = []string{strings.Repeat("0", 64), hex.EncodeToString(sum[:])}
	}
	text, err := json.Marshal(map[string]any{"files": written, "restart_unit": "containerd.service"})
	require.NoError(t, err)
	b.write(t, recordPath, string(text))
	require.NoError(t, os.Remove(b.path(filesPath)))
	b.took()

	require.NoError(t, b.Install(t.Context(), filesOf("2"), setup.System))
	require.Equal(t, "program 2", b.read(t, programPath))
	require.Contains(t, b.took(), "systemctl restart containerd.service", "the pending restart")
	require.NotContains(t, b.read(t, recordPath), "files")
	require.NoError(t, b.Remove(t.Context(), setup.System))
	require.Empty(t, b.files(t))
}
