package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/setup"
	"github.com/thinsnap/thinsnap/internal/setup/journal"
)

// printingContainerd prints its configuration file and the imports, unmerged: this is enough if
// files only add sections.
const printingContainerd = `#!/bin/sh
PATH=/usr/bin:/bin
case "$*" in
--version) echo "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1" ;;
"config default") ;;
*) dir=${2%/*}; cat "$dir"/*.toml "$dir"/conf.d/*.toml 2>/dev/null | grep -v '^version\|^imports\|^#' ;;
esac
exit 0
`

// setupBench has the commands use a fake containerd, and records their commands.
type setupBench struct {
	dir      string
	use      setup.Containerd
	dockerd  setup.Dockerd
	executed []string
	fails    error
	planned  config.Config
	taken    error
}

func newSetupBench(t *testing.T) *setupBench {
	t.Helper()
	b := &setupBench{dir: t.TempDir()}
	program := filepath.Join(b.dir, "containerd")
	require.NoError(t, os.WriteFile(program, []byte(printingContainerd), 0o700))
	b.use = setup.Containerd{
		Kind: setup.System, Executable: program, Config: filepath.Join(b.dir, "etc", "config.toml"),
		Address: setup.DefaultAddress, Unit: "containerd.service", Source: "process 812",
	}
	require.NoError(t, os.Mkdir(filepath.Dir(b.use.Config), 0o755))
	require.NoError(t, os.WriteFile(b.use.Config, []byte("version = 2\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(b.dir, "thinsnap.toml"), []byte("version = 1\n"), 0o600))
	return b
}

func (b *setupBench) run(t *testing.T, want int, args ...string) string {
	t.Helper()
	var out strings.Builder
	a := &app{out: &out, errOut: &out, backend: backend{
		containerds:  func() ([]setup.Containerd, error) { return []setup.Containerd{b.use}, nil },
		dockerd:      func() (setup.Dockerd, error) { return b.dockerd, nil },
		setupRecords: filepath.Join(b.dir, "records"),
		setupLock:    filepath.Join(b.dir, "setup.lock"),
		diskDropIn:   filepath.Join(b.dir, "disk.conf"),
		disksByID:    filepath.Join(b.dir, "by-id"),
		planPool: func(_ context.Context, cfg config.Config) ([]string, error) {
			b.planned = cfg
			return nil, b.taken
		},
		execute: func(_ context.Context, args ...string) error {
			b.executed = append(b.executed, strings.Join(args, " "))
			return b.fails
		},
	}}
	file := filepath.Join(b.dir, "thinsnap.toml")
	code := a.run(t.Context(), append([]string{"thinsnap", "--config", file, "setup"}, args...))
	require.Equal(t, want, code, out.String())
	return strings.ReplaceAll(out.String(), b.dir, "DIR")
}

func TestSetupContainerd(t *testing.T) {
	b := newSetupBench(t)
	require.Equal(t, "Nothing to undo.\n", b.run(t, exitOK, "containerd", "--undo"))

	dry := b.run(t, exitOK, "containerd", "--dry-run")
	require.Contains(t, dry, "containerd 1.6.20~ds1 (DIR/containerd) reads DIR/etc/config.toml, according to process 812.\n")
	require.Contains(t, dry, "+++ DIR/etc/conf.d/thinsnap.toml\t\n@@ -0,0 +1,6 @@\n")
	require.Contains(t, dry, "+imports = [\"DIR/etc/conf.d/*.toml\"]  # added by thinsnap setup\n")
	require.NoFileExists(t, filepath.Join(b.dir, "etc/conf.d/thinsnap.toml"))

	made := b.run(t, exitOK, "containerd")
	require.Contains(t, made, "Wrote DIR/etc/conf.d/thinsnap.toml.\nChanged DIR/etc/config.toml.\n"+
		"Kept a copy of the previous file in DIR/etc/config.toml.before-thinsnap.\n")
	require.True(t, strings.HasSuffix(made, `
Next:
    systemctl enable --now thinsnap
    systemctl restart containerd
    thinsnap doctor
    ctr image pull --snapshotter thinsnap docker.io/library/busybox:latest
    ctr run --rm --snapshotter thinsnap docker.io/library/busybox:latest first echo it works
`), made)
	require.Empty(t, b.executed)
	require.Contains(t, b.run(t, exitOK, "containerd"), "Nothing to do: everything is set up.\n")

	require.Contains(t, b.run(t, exitOK, "containerd", "--undo", "--dry-run"), "+++ /dev/null\t\n")
	require.FileExists(t, filepath.Join(b.dir, "etc/conf.d/thinsnap.toml"))
	undone := b.run(t, exitOK, "containerd", "--undo")
	require.Contains(t, undone, "Changed back DIR/etc/config.toml.\nRemoved DIR/etc/conf.d/thinsnap.toml.\n")
	text, err := os.ReadFile(b.use.Config)
	require.NoError(t, err)
	require.Equal(t, "version = 2\n", string(text))
	require.NoDirExists(t, filepath.Join(b.dir, "etc/conf.d"))
	require.NoDirExists(t, filepath.Join(b.dir, "records"))
}

func TestSetupNow(t *testing.T) {
	b := newSetupBench(t)
	b.use.Unit, b.use.Address = "k0s.service", "/run/k0s.sock"
	out := b.run(t, exitOK, "containerd", "--now")
	require.Equal(t, []string{"systemctl enable --now thinsnap", "systemctl restart k0s"}, b.executed)
	require.Contains(t, out, "Started thinsnap, and restarted k0s.\n")
	require.Contains(t, out, "\n    ctr --address /run/k0s.sock run --rm")
	require.NotContains(t, out, "    systemctl")
	b.fails = errors.New("no systemd")
	require.Contains(t, b.run(t, exitFailure, "containerd", "--now"), "no systemd")
	require.Contains(t, b.run(t, exitUsage, "containerd", "--now", "--dry-run"), "--now and --dry-run exclude each other")
}

// TestSetupAlone: only one command at a time changes files.
func TestSetupAlone(t *testing.T) {
	b := newSetupBench(t)
	release, err := journal.Lock(filepath.Join(b.dir, "setup.lock"), "thinsnap setup k3s")
	require.NoError(t, err)
	for _, args := range [][]string{{"containerd"}, {"containerd", "--undo"}, {"docker"}} {
		require.Contains(t, b.run(t, exitFailure, args...), "(thinsnap setup k3s) holds DIR/setup.lock: run the command again when")
	}
	b.run(t, exitOK, "containerd", "--dry-run")
	require.NoFileExists(t, filepath.Join(b.dir, "etc/conf.d/thinsnap.toml"))
	require.NoError(t, release())
	b.run(t, exitOK, "containerd")
}

func TestSetupChooses(t *testing.T) {
	b := newSetupBench(t)
	other := filepath.Join(b.dir, "etc", "other.toml")
	require.Contains(t, b.run(t, exitOK, "containerd", "--containerd-config", other), "reads DIR/etc/other.toml, according to --containerd-config")
	require.FileExists(t, other)
	b.run(t, exitOK, "containerd", "--undo")
	require.NoFileExists(t, other)

	b.use.Config = ""
	require.Contains(t, b.run(t, exitFailure, "containerd"), "name its configuration with --containerd-config")
	b.use.Kind = setup.Docker
	require.Contains(t, b.run(t, exitFailure, "containerd"), "no containerd of the kind")
	b.use.Config = other
	require.Contains(t, b.run(t, exitFailure, "containerd", "--containerd-config", other), "use `thinsnap setup docker`")
	require.NoFileExists(t, other)
}

// TestSetupRelative: --undo works in every working directory.
func TestSetupRelative(t *testing.T) {
	b := newSetupBench(t)
	t.Chdir(b.dir)
	b.run(t, exitOK, "containerd", "--containerd-config", "etc/other.toml")
	require.FileExists(t, "etc/other.toml")
	require.FileExists(t, "etc/conf.d/thinsnap.toml")
	t.Chdir("/")
	b.run(t, exitOK, "containerd", "--undo")
	require.NoFileExists(t, filepath.Join(b.dir, "etc/other.toml"))
	require.NoDirExists(t, filepath.Join(b.dir, "etc/conf.d"))
}

func TestSetupDisk(t *testing.T) {
	b := newSetupBench(t)
	sdb := filepath.Join(b.dir, "sdb")
	require.NoError(t, os.WriteFile(sdb, nil, 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(b.dir, "by-id"), 0o755))
	require.NoError(t, os.Symlink("../sdb", filepath.Join(b.dir, "by-id", "virtio-data")))
	out := b.run(t, exitOK, "containerd", "--disk", sdb)
	require.Contains(t, out, "thinsnap will create its pool on DIR/by-id/virtio-data when it first starts.\n")
	require.Contains(t, out, "Changed DIR/thinsnap.toml.\nWrote DIR/disk.conf.\nWrote DIR/etc/conf.d/thinsnap.toml.\n")
	require.Contains(t, out, "    systemctl daemon-reload\n    systemctl enable thinsnap\n    systemctl restart thinsnap\n")
	require.Equal(t, filepath.Join(b.dir, "by-id", "virtio-data"), b.planned.Pool.DirectLVM.Device)
	text, err := os.ReadFile(filepath.Join(b.dir, "disk.conf"))
	require.NoError(t, err)
	require.Contains(t, string(text), "\nDeviceAllow="+filepath.Join(b.dir, "by-id", "virtio-data")+" rw\n")

	b.planned, b.taken = config.Config{}, errors.New("is not asked again")
	require.Contains(t, b.run(t, exitOK, "containerd", "--disk", sdb), "Nothing to do")
	require.Contains(t, b.run(t, exitOK, "containerd", "--undo"), ": systemctl daemon-reload; systemctl restart containerd\n")
	require.NoFileExists(t, filepath.Join(b.dir, "disk.conf"))

	b.taken = fmt.Errorf("is not empty (ext4): %w", pool.ErrDeviceTaken)
	out = b.run(t, exitFailure, "containerd", "--disk", sdb)
	require.Contains(t, out, "is not empty (ext4)")
	require.Contains(t, out, "clear it with `wipefs --all DIR/by-id/virtio-data`")
	require.NoFileExists(t, filepath.Join(b.dir, "etc/conf.d/thinsnap.toml"))
	require.Contains(t, b.run(t, exitFailure, "containerd", "--disk", sdb+"x"), "there is no such disk")
	require.NoError(t, os.Remove(filepath.Join(b.dir, "by-id", "virtio-data")))
	b.taken = nil
	require.Contains(t, b.run(t, exitOK, "containerd", "--disk", sdb, "--dry-run"), "may have another name after the next boot")
}

const printingDockerd = "#!/bin/sh\ncase $1 in\n--version) echo 'Docker version 28.5.2, build 1' ;;\nesac\n"

func TestSetupDocker(t *testing.T) {
	b := newSetupBench(t)
	b.dockerd = setup.Dockerd{
		Executable: filepath.Join(b.dir, "dockerd"), Config: filepath.Join(b.dir, "etc", "daemon.json"),
		Containerd: setup.DefaultAddress, Unit: "docker.service", Source: "process 900",
	}
	require.NoError(t, os.WriteFile(b.dockerd.Executable, []byte(printingDockerd), 0o700))
	out := b.run(t, exitOK, "docker")
	require.Contains(t, out, "Wrote DIR/etc/conf.d/thinsnap.toml.\n")
	require.Contains(t, out, "dockerd (DIR/dockerd) reads DIR/etc/daemon.json, according to process 900.\nWrote DIR/etc/daemon.json.\n")
	require.Contains(t, out, "    systemctl restart containerd\n    systemctl restart docker\n")
	text, err := os.ReadFile(b.dockerd.Config)
	require.NoError(t, err)
	require.JSONEq(t, `{"features": {"containerd-snapshotter": true}, "storage-driver": "thinsnap"}`, string(text))
	require.Contains(t, b.run(t, exitOK, "docker"), "Nothing to do: everything is set up.\n")

	out = b.run(t, exitOK, "docker", "--undo")
	require.Contains(t, out, "Removed DIR/etc/daemon.json.\n")
	require.Contains(t, out, "systemctl restart docker\n")
	require.FileExists(t, filepath.Join(b.dir, "etc/conf.d/thinsnap.toml"))
	b.run(t, exitOK, "containerd", "--undo")
	require.NoDirExists(t, filepath.Join(b.dir, "records"))

	b.use.Kind, b.dockerd.Containerd = setup.Docker, ""
	require.Contains(t, b.run(t, exitFailure, "docker"), "install containerd as a service")
}

func TestSetupK3s(t *testing.T) {
	b := newSetupBench(t)
	b.use.Kind, b.use.Unit, b.use.Address = setup.K3s, "k3s.service", "/run/k3s/containerd/containerd.sock"
	out := b.run(t, exitOK, "k3s")
	require.Contains(t, out, "Wrote DIR/etc/config.toml.tmpl.\n")
	require.Contains(t, out, "    systemctl restart k3s\n    thinsnap doctor\n    k3s ctr image pull")
	require.Contains(t, b.run(t, exitOK, "k3s", "--undo"), "systemctl restart k3s\n")
	require.NoFileExists(t, filepath.Join(b.dir, "etc/config.toml.tmpl"))
	require.Contains(t, b.run(t, exitFailure, "k3s", "--runtime", "kata"), "leave out --default and --runtime")
}

// TestSetupSecondContainerd: a second containerd becomes a further client, and --undo reverts that.
func TestSetupSecondContainerd(t *testing.T) {
	b := newSetupBench(t)
	own := filepath.Join(b.dir, "thinsnap.toml")
	first := b.use
	second := b.use
	second.Kind, second.Unit, second.Config = setup.K3s, "k3s.service", filepath.Join(b.dir, "k3s", "config.toml")
	require.NoError(t, os.Mkdir(filepath.Dir(second.Config), 0o755))
	require.NoError(t, os.WriteFile(second.Config, []byte("version = 2\n"), 0o600))
	configured := func() string {
		text, err := os.ReadFile(own)
		require.NoError(t, err)
		return string(text)
	}
	b.run(t, exitOK, "containerd")

	b.use = second
	require.Contains(t, b.run(t, exitOK, "k3s", "--dry-run"), "+[[clients]]\n+name = \"k3s\"\n+address = \"/run/thinsnap/k3s.sock\"\n")
	out := b.run(t, exitOK, "k3s")
	require.Contains(t, out, "thinsnap gets a further client \"k3s\" with its own socket, because containerd is the default client.\n")
	require.Contains(t, out, "    systemctl enable thinsnap\n    systemctl restart thinsnap\n    systemctl restart k3s\n")
	cfg, err := config.Load(own)
	require.NoError(t, err)
	require.Equal(t, []config.Client{{Name: "k3s", Address: "/run/thinsnap/k3s.sock"}}, cfg.Clients)
	text, err := os.ReadFile(second.Config + ".tmpl")
	require.NoError(t, err)
	require.Contains(t, string(text), "address = '/run/thinsnap/k3s.sock'\n")
	require.Contains(t, b.run(t, exitOK, "k3s"), "Nothing to do")
	b.use = first
	require.Contains(t, b.run(t, exitOK, "containerd"), "Nothing to do", "it stays the default one")

	b.use = second
	require.Contains(t, b.run(t, exitOK, "k3s", "--undo"), ": systemctl restart k3s; systemctl restart thinsnap\n")
	require.Equal(t, "version = 1\n", configured())

	b.use = first
	b.run(t, exitOK, "containerd", "--undo")
	b.use = second
	require.NotContains(t, b.run(t, exitOK, "k3s"), "further client")
	require.NoError(t, os.WriteFile(own, []byte("version = 1\nclients = [{ name = \"x\", address = \"/run/x.sock\" }]\n"), 0o600))
	b.use = first
	require.Contains(t, b.run(t, exitFailure, "containerd"), `with name "containerd" and address "/run/thinsnap/containerd.sock" by hand`)
	require.NoFileExists(t, filepath.Join(b.dir, "etc/conf.d/thinsnap.toml"))
	require.NoError(t, os.Remove(own))
	b.dockerd = setup.Dockerd{Executable: filepath.Join(b.dir, "dockerd"), Config: filepath.Join(b.dir, "daemon.json")}
	require.NoError(t, os.WriteFile(b.dockerd.Executable, []byte(printingDockerd), 0o700))
	require.NoError(t, os.WriteFile(own, nil, 0o600))
	require.Contains(t, b.run(t, exitOK, "docker", "--disk", b.disk(t)), "a further client \"containerd\"")
	cfg, err = config.Load(own)
	require.NoError(t, err)
	require.Equal(t, "containerd", cfg.Clients[0].Name)
	require.Equal(t, config.ModeDirectLVM, cfg.Pool.Mode)
}

func (b *setupBench) disk(t *testing.T) string {
	t.Helper()
	path := filepath.Join(b.dir, "sdc")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	return path
}
