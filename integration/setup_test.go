package integration

import (
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/vm"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/setup"
	"github.com/thinsnap/thinsnap/internal/setup/journal"
)

var updateSetup = flag.Bool("update-setup", false, "write the output of thinsnap setup to testdata/setup")

// setupTestbed is an installed containerd with a configuration of its own.
type setupTestbed struct {
	use     setup.Containerd
	release setup.Release
	record  string
	before  map[string]string
}

// setupPrograms returns the installed containerd of each release.
func setupPrograms(t *testing.T) map[string]string {
	t.Helper()
	cache, err := vm.CacheDir()
	require.NoError(t, err)
	programs := make(map[string]string)
	for name, path := range map[string]string{
		"1.6": "debian/containerd/usr/bin/containerd", "1.7": "containerd-1.7/containerd", "2.4": "bin/containerd",
	} {
		path = filepath.Join(cache, path)
		if _, err := os.Stat(path); err == nil {
			programs[name] = path
		} else if name != "1.7" {
			dmtest.RequireInstalled(t, err)
		}
	}
	return programs
}

// newSetupTestbed writes the files of a configuration. "DIR" in them stands for their directory.
func newSetupTestbed(t *testing.T, program string, files map[string]string) *setupTestbed {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, "etc", name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", filepath.Join(dir, "etc"))), 0o600))
	}
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "etc"), 0o755))
	s := &setupTestbed{
		use: setup.Containerd{
			Kind: setup.System, Executable: program, Config: filepath.Join(dir, "etc", "config.toml"), Source: "the test",
		},
		record: filepath.Join(dir, "records", "containerd.json"),
	}
	var err error
	s.release, err = s.use.Release(t.Context())
	require.NoError(t, err)
	s.before = s.files(t)
	return s
}

func (s *setupTestbed) dir() string { return filepath.Dir(s.use.Config) }

// files returns the contents of all files of the configuration, and its directories.
func (s *setupTestbed) files(t *testing.T) map[string]string {
	t.Helper()
	found := make(map[string]string)
	require.NoError(t, filepath.WalkDir(s.dir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			found[path] = "directory"
			return err
		}
		text, err := os.ReadFile(path)
		found[path] = string(text)
		return err
	}))
	return found
}

func (s *setupTestbed) open(t *testing.T) *journal.Record {
	t.Helper()
	r, err := journal.Open(s.record)
	require.NoError(t, err)
	return r
}

func thinsnapFor(isDefault bool, runtimes ...string) setup.Wish {
	return setup.Wish{
		Switch: setup.Switch{
			Proxy: "thinsnap", Address: "/run/thinsnap/thinsnap.sock", Root: "/var/lib/thinsnap", Platform: "linux/amd64",
		},
		Default: isDefault, Runtimes: runtimes,
	}
}

func (s *setupTestbed) plan(t *testing.T, w setup.Wish) (setup.Plan, error) {
	t.Helper()
	return s.use.Plan(t.Context(), s.release, w, s.open(t), "thinsnap setup containerd")
}

// apply makes a change, and returns how containerd then reads its configuration.
func (s *setupTestbed) apply(t *testing.T, w setup.Wish) setup.Dump {
	t.Helper()
	plan, err := s.plan(t, w)
	require.NoError(t, err)
	require.NotEmpty(t, plan.Files)
	require.Equal(t, s.before, s.files(t), "a plan changes nothing")
	require.NoError(t, s.open(t).Apply(plan.Files, func() error { return plan.Verify(t.Context(), s.use) }))
	dump, err := s.use.Dump(t.Context(), s.use.Config)
	require.NoError(t, err)
	require.Equal(t, setup.Proxy{Type: "snapshot", Address: w.Address}, dump.Proxies["thinsnap"])

	again, err := s.plan(t, w)
	require.NoError(t, err)
	require.Empty(t, again.Files, "a second run changes nothing")
	return dump
}

func (s *setupTestbed) undo(t *testing.T) {
	t.Helper()
	require.NoError(t, s.open(t).TakeBack())
	require.Equal(t, s.before, s.files(t))
	require.NoDirExists(t, filepath.Dir(s.record))
}

// usedBy returns the snapshotter at the key with this suffix.
func usedBy(d setup.Dump, end string) string {
	for _, use := range d.Uses() {
		if strings.HasSuffix(use.Key, end) {
			return use.Snapshotter
		}
	}
	return ""
}

const (
	ofDebian = `version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
`
	// ofDocker is the configuration in Docker's package. It names no version, so it has version 1.
	ofDocker = "#   Licensed under the Apache License\n\ndisabled_plugins = [\"cri\"]\n\n#root = \"/var/lib/containerd\"\n" +
		"#[debug]\n#  level = \"info\"\n"
	first = `root = "/var/lib/containerd"

[plugins.cri]
  sandbox_image = "registry.local/pause:3.6"
  [plugins.cri.containerd]
    default_runtime_name = "runc"
  [plugins.cri.cni]
    bin_dir = "/usr/lib/cni"
`
	busy = `version = 2
imports = [
  "DIR/site.d/*.toml",  # the site's
]
required_plugins = []

[grpc]
  address = "/run/containerd/containerd.sock"

[proxy_plugins.stargz]
  type = "snapshot"
  address = "/run/containerd-stargz-grpc/containerd-stargz-grpc.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.local/pause:3.9"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "nvidia"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]
      runtime_type = "io.containerd.runc.v2"
      privileged_without_host_devices = false
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options]
        BinaryName = "/usr/bin/nvidia-container-runtime"
        SystemdCgroup = true
`
	third = `version = 3

[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = '/etc/containerd/certs.d'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia]
  runtime_type = 'io.containerd.runc.v2'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia.options]
    BinaryName = '/usr/bin/nvidia-container-runtime'

[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'linux/amd64'
  snapshotter = 'native'
`
)

// TestSetup: with each release of containerd and each of these configurations, setup makes the wished changes and no
// others, and undo restores all files.
func TestSetup(t *testing.T) {
	type configuration struct {
		files map[string]string
		since string // the first release that reads the configuration, "" for all
	}
	site := map[string]string{"config.toml": busy, "site.d/timeouts.toml": "version = 2\n[timeouts]\n  \"x\" = \"5s\"\n"}
	for release, program := range setupPrograms(t) {
		for name, c := range map[string]configuration{
			"missing": {nil, ""},
			"empty":   {map[string]string{"config.toml": ""}, ""},
			"debian":  {map[string]string{"config.toml": ofDebian}, ""},
			"docker":  {map[string]string{"config.toml": ofDocker}, ""},
			"first":   {map[string]string{"config.toml": first}, ""},
			"busy":    {site, ""},
			"third":   {map[string]string{"config.toml": third}, "2"},
			"default": {map[string]string{"config.toml": defaultOf(t, program)}, ""},
		} {
			if release < c.since {
				continue
			}
			t.Run(release+"/"+name, func(t *testing.T) {
				testSetup(t, release, name, newSetupTestbed(t, program, c.files))
			})
		}
	}
}

// defaultOf returns the output of `containerd config default`, with a directory of its own for imports.
func defaultOf(t *testing.T, program string) string {
	t.Helper()
	text := command(t, program, "config", "default")
	return strings.ReplaceAll(text, "/etc/containerd/conf.d", "DIR/conf.d")
}

func testSetup(t *testing.T, release, name string, s *setupTestbed) {
	t.Helper()
	// Docker's configuration has no CRI, and version 1 no list for the transfer service.
	isFirst := name == "docker" || name == "first" || name == "empty"
	dump := s.apply(t, thinsnapFor(false))
	requireSetUp(t, s, release, name)
	if release != "1.6" && (release != "1.7" || !isFirst) {
		require.Equal(t, "thinsnap", usedBy(dump, "unpack_config["+lastUnpack(dump)+"].snapshotter"))
	}
	require.NotEqual(t, "thinsnap", usedBy(dump, defaultKey(release)))
	s.undo(t)
	if name == "docker" {
		return
	}
	dump = s.apply(t, thinsnapFor(true))
	requireSetUp(t, s, release, name+"-default")
	require.Equal(t, "thinsnap", usedBy(dump, defaultKey(release)))
	if name == "busy" {
		require.Contains(t, fmt.Sprint(dump.Plugins), "/usr/bin/nvidia-container-runtime")
		require.Contains(t, fmt.Sprint(dump.Plugins), "/etc/containerd/certs.d")
		require.Contains(t, dump.Proxies, "stargz")
	}
	s.undo(t)

	wish := thinsnapFor(false, "nvidia")
	if release == "1.6" {
		_, err := s.plan(t, wish)
		require.ErrorIs(t, err, errdefs.ErrNotImplemented)
		return
	}
	if name != "busy" && name != "third" {
		_, err := s.plan(t, wish)
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		require.ErrorContains(t, err, `no runtime "nvidia", only ["runc"]`)
		return
	}
	dump = s.apply(t, wish)
	require.Equal(t, "thinsnap", usedBy(dump, "containerd.runtimes.nvidia.snapshotter"))
	require.NotEqual(t, "thinsnap", usedBy(dump, defaultKey(release)))
	// The options of the last run apply.
	plan, err := s.plan(t, thinsnapFor(true))
	require.NoError(t, err)
	require.Len(t, plan.Files, 1)
	require.NoError(t, s.open(t).Apply(plan.Files, func() error { return plan.Verify(t.Context(), s.use) }))
	dump, err = s.use.Dump(t.Context(), s.use.Config)
	require.NoError(t, err)
	require.Equal(t, "thinsnap", usedBy(dump, defaultKey(release)))
	require.Empty(t, usedBy(dump, "containerd.runtimes.nvidia.snapshotter"))
	s.undo(t)
}

func defaultKey(release string) string {
	if release < "2" {
		return `cri".containerd.snapshotter`
	}
	return `cri.v1.images".snapshotter`
}

func lastUnpack(d setup.Dump) string {
	transfer, _ := d.Plugins["io.containerd.transfer.v1.local"].(map[string]any)
	list, _ := transfer["unpack_config"].([]any)
	return fmt.Sprint(len(list) - 1)
}

// requireSetUp compares the lines added to files with testdata.
func requireSetUp(t *testing.T, s *setupTestbed, release, name string) {
	t.Helper()
	var b strings.Builder
	now := s.files(t)
	for _, path := range slices.Sorted(maps.Keys(now)) {
		if now[path] == s.before[path] || now[path] == "directory" || strings.HasSuffix(path, ".before-thinsnap") {
			continue
		}
		fmt.Fprintf(&b, "==> %s <==\n", strings.TrimPrefix(path, s.dir()+"/"))
		old := make(map[string]int)
		for line := range strings.Lines(s.before[path]) {
			old[line]++
		}
		for line := range strings.Lines(now[path]) {
			if old[line]--; old[line] < 0 {
				b.WriteString(strings.ReplaceAll(line, s.dir(), "DIR"))
			}
		}
	}
	file := filepath.Join("testdata/setup", release+"-"+name+".txt")
	if *updateSetup {
		require.NoError(t, os.WriteFile(file, []byte(b.String()), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), b.String())
}

// TestSetupRefuses: setup refuses changes that need the user's decision, and changes no file.
func TestSetupRefuses(t *testing.T) {
	for release, program := range setupPrograms(t) {
		later := "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n"
		if release > "2" {
			later = "version = 3\n[plugins.\"io.containerd.cri.v1.images\"]\nsnapshotter = \"native\"\n"
		}
		for name, c := range map[string]struct {
			files map[string]string
			wish  setup.Wish
			class error
			text  string
		}{
			"overridden later": {
				map[string]string{"config.toml": "version = 2\nimports = [\"DIR/conf.d/*.toml\"]\n", "conf.d/zz.toml": later},
				thinsnapFor(true), errdefs.ErrFailedPrecondition, "snapshotter, but a file that is imported later sets it again",
			},
			"another name": {
				map[string]string{"config.toml": "version = 2\n[proxy_plugins.dm]\ntype = \"snapshot\"\n" +
					"address = \"/run/thinsnap/thinsnap.sock\"\n"},
				thinsnapFor(false), errdefs.ErrFailedPrecondition, "remove its section [proxy_plugins.dm]",
			},
			"another address": {
				map[string]string{"config.toml": "version = 2\n[proxy_plugins.thinsnap]\ntype = \"snapshot\"\naddress = \"/x\"\n"},
				thinsnapFor(false), errdefs.ErrFailedPrecondition, `of type "snapshot" at "/x": correct its section`,
			},
			"unreadable": {
				map[string]string{"config.toml": "version = 2\n[plugins\n"},
				thinsnapFor(false), errdefs.ErrInvalidArgument, "config.toml: line 2",
			},
			"foreign files": {
				map[string]string{"config.toml": "version = 2\n", "conf.d/thinsnap.toml": "", "conf.d/thinsnap-setup.toml": ""},
				thinsnapFor(false), errdefs.ErrFailedPrecondition, "has no record of it",
			},
			"no CRI": {
				map[string]string{"config.toml": ofDocker}, thinsnapFor(true), errdefs.ErrFailedPrecondition, "leave out --default",
			},
		} {
			t.Run(release+"/"+name, func(t *testing.T) {
				s := newSetupTestbed(t, program, c.files)
				_, err := s.plan(t, c.wish)
				require.ErrorIs(t, err, c.class)
				require.ErrorContains(t, err, c.text)
				require.Equal(t, s.before, s.files(t))
			})
		}
	}
}

// TestSetupByHand: setup leaves entries made by hand alone, and does not import other files of the directory.
func TestSetupByHand(t *testing.T) {
	for release, program := range setupPrograms(t) {
		t.Run(release, func(t *testing.T) {
			s := newSetupTestbed(t, program, map[string]string{"config.toml": "version = 2\n", "conf.d/old.toml": "not TOML"})
			s.apply(t, thinsnapFor(false))
			main, err := os.ReadFile(s.use.Config)
			require.NoError(t, err)
			require.Contains(t, string(main), "/conf.d/thinsnap*.toml\"]")

			require.NoError(t, os.WriteFile(filepath.Join(s.dir(), "conf.d/thinsnap.toml"), []byte("version = 2\n# mine\n"), 0o600))
			_, err = s.plan(t, thinsnapFor(false))
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			require.ErrorContains(t, err, "was edited since")
			require.ErrorIs(t, s.open(t).TakeBack(), errdefs.ErrFailedPrecondition)

			byHand := newSetupTestbed(t, program, map[string]string{"config.toml": "version = 2\n[proxy_plugins.thinsnap]\n" +
				"type = \"snapshot\"\naddress = \"/run/thinsnap/thinsnap.sock\"\n[[plugins.\"io.containerd.transfer.v1.local\"" +
				".unpack_config]]\nplatform = \"linux/amd64\"\nsnapshotter = \"thinsnap\"\n"})
			plan, err := byHand.plan(t, thinsnapFor(false))
			require.NoError(t, err)
			require.Empty(t, plan.Files)
		})
	}
}
