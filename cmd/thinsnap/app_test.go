package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
)

func TestInvalidCommandLines(t *testing.T) {
	for _, test := range []struct {
		args []string
		err  string
	}{
		{[]string{"frob"}, "unknown command \"frob\"; see \"thinsnap --help\""},
		{[]string{"pool", "frob"}, "unknown command \"frob\"; see \"thinsnap pool --help\""},
		{[]string{"lss"}, "unknown command \"lss\" (did you mean \"ls\"?); see \"thinsnap --help\""},
		{[]string{"list"}, "unknown command \"list\" (did you mean \"ls\"?); see \"thinsnap --help\""},
		{[]string{"pool", "stat"}, "unknown command \"stat\" (did you mean \"status\"?); see \"thinsnap pool --help\""},
		{[]string{"pool", "extned"}, "unknown command \"extned\" (did you mean \"extend\"?); see \"thinsnap pool --help\""},
		{[]string{"leftovers", "rm"}, "unknown command \"rm\" (did you mean \"remove\"?); see \"thinsnap leftovers --help\""},
		{[]string{"help", "foo"}, "unknown command \"foo\"; see \"thinsnap --help\""},
		{[]string{"help", "pool", "foo"}, "unknown command \"foo\"; see \"thinsnap pool --help\""},
		{[]string{"pool", "help", "foo"}, "unknown command \"foo\"; see \"thinsnap pool --help\""},
		{
			[]string{"--admin-address", "/none", "pool", "extend", "--data", "much"},
			"--data: \"much\" is not a size: use a number with a unit, such as \"64KiB\" or \"10GiB\"",
		},
		{[]string{"info", "--frob"}, "unknown option --frob; see \"thinsnap info --help\""},
		{[]string{"info", "more"}, "unexpected argument \"more\"; usage: thinsnap info [options]"},
		{[]string{"inspect"}, "missing argument; usage: thinsnap inspect [options] KEY"},
		{[]string{"diff", "a", "b"}, "unexpected argument \"b\"; usage: thinsnap diff [options] KEY"},
		{[]string{"config", "check", "a", "b"}, "unexpected argument \"b\"; usage: thinsnap config check [options] [FILE]"},
	} {
		require.Equal(t, result{exitUsage, "", "thinsnap: " + test.err + "\n"}, try(t, false, backend{}, test.args...))
	}
}

func TestHelp(t *testing.T) {
	require.Contains(t, output(t, false, "help"), "USAGE:\n   thinsnap [global options]")
	for _, args := range [][]string{{"help", "pool", "extend"}, {"pool", "help", "extend"}, {"pool", "extend", "--help"}} {
		require.Contains(t, output(t, false, args...), "USAGE:\n   thinsnap pool extend [options]", args)
	}
}

func TestNoDaemon(t *testing.T) {
	address := filepath.Join(t.TempDir(), "none.sock")
	for _, args := range [][]string{{"info"}, {"ls"}, {"tree"}, {"inspect", "k"}, {"pool", "status"}, {"pool", "extend", "--data", "+1G"}, {"pool", "trim"}} {
		got := try(t, false, backend{}, append([]string{"--admin-address", address}, args...)...)
		require.Equal(t, result{exitUnavailable, "", "thinsnap: no daemon answers on " + address + ": is \"thinsnap serve\" running?\n"}, got)
	}
}

// TestAddressFromConfiguration: without the flag, the daemon's address comes from the
// configuration.
func TestAddressFromConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	require.NoError(t, os.WriteFile(file, []byte("admin_address = \""+fakeDaemon(t)+"\"\n"), 0o600))
	require.Equal(t, poolText, output(t, false, "--config", file, "pool", "status"))
	require.Equal(t, poolText, output(t, false, "pool", "status", "--config", file))
}

func TestConfigCommands(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.toml")
	text := output(t, false, "config", "default")
	require.Equal(t, config.DefaultFile(), text)
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	require.Equal(t, file+": OK\n", output(t, false, "config", "check", file))
	require.Equal(t, file+": OK\n", output(t, false, "--config", file, "config", "check"))

	require.NoError(t, os.WriteFile(file, []byte("root = \"x\"\n[pool]\nname = \"\"\n"), 0o600))
	got := try(t, false, backend{}, "config", "check", file)
	require.Equal(t, exitConfig, got.code)
	require.Equal(t, "thinsnap: "+file+`: root = "x": must be an absolute path other than /`+"\n"+
		"thinsnap: "+file+`: pool.name = "": must be 1 to 64 letters, digits and the characters - _ . +, beginning with a letter or a digit`+"\n", got.err)

	got = try(t, false, backend{}, "config", "check", "--json", file)
	require.Equal(t, exitConfig, got.code)
	require.JSONEq(t, `{"file": "`+file+`", "missing": false, "problems": ["root = \"x\": must be an absolute path other than /",
		"pool.name = \"\": must be 1 to 64 letters, digits and the characters - _ . +, beginning with a letter or a digit"]}`, got.out)

	got = try(t, false, backend{}, "config", "check", filepath.Join(dir, "none"))
	require.Equal(t, exitFailure, got.code)
	require.Contains(t, got.err, "no such file")
}

func TestConfigCheckOfTheStandardInput(t *testing.T) {
	for text, want := range map[string]result{
		"version = 1\n":      {exitOK, "-: OK\n", ""},
		"version = 1\nx = 1": {exitConfig, "", "thinsnap: standard input: line 2: unknown key x\n"},
	} {
		in, err := os.Create(filepath.Join(t.TempDir(), "in"))
		require.NoError(t, err)
		defer in.Close()
		_, err = in.WriteString(text)
		require.NoError(t, err)
		_, err = in.Seek(0, 0)
		require.NoError(t, err)
		var out, errOut bytes.Buffer
		a := &app{in: in, out: &out, errOut: &errOut}
		code := a.run(t.Context(), []string{"thinsnap", "config", "check", "-"})
		require.Equal(t, want, result{code, out.String(), errOut.String()})
	}
}

func TestConfigFromDocker(t *testing.T) {
	file := filepath.Join(t.TempDir(), "daemon.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"storage-opts":["dm.directlvm_device=/dev/xdf"]}`), 0o600))
	require.Contains(t, output(t, false, "config", "from-docker", file), "\n[pool.direct_lvm]\ndevice = \"/dev/xdf\"\n")
	require.NoError(t, os.WriteFile(file, []byte(`{"storage-driver":"overlay2"}`), 0o600))
	got := try(t, false, backend{}, "config", "from-docker", file)
	require.Equal(t, exitFailure, got.code)
	require.Contains(t, got.err, file+`: the storage driver is "overlay2"`)
}

func TestConfigFromContainerd(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.toml")
	require.NoError(t, os.WriteFile(file, []byte("version = 3\nimports = [\"*.d/*\"]\n"), 0o600))
	got := try(t, false, backend{}, "config", "from-containerd", file)
	require.Equal(t, exitFailure, got.code)
	require.Empty(t, got.out)
	require.Contains(t, got.err, file+`: [plugins."io.containerd.snapshotter.v1.devmapper"] has no pool_name`)

	require.NoError(t, os.Mkdir(filepath.Join(dir, "conf.d"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "conf.d", "devmapper.toml"), []byte("version = 2\n"+
		"[plugins.'io.containerd.snapshotter.v1.devmapper']\npool_name = 'devpool'\nbase_image_size = '8GB'\n"), 0o600))
	converted := filepath.Join(dir, "thinsnap.toml")
	require.NoError(t, os.WriteFile(converted, []byte(output(t, false, "config", "from-containerd", file)), 0o600))
	require.Equal(t, converted+": OK\n", output(t, false, "config", "check", converted))
	cfg, err := config.Load(converted)
	require.NoError(t, err)
	require.Equal(t, "/dev/mapper/devpool", cfg.Pool.Existing.Device)
}

func TestPoolCreateAndDestroy(t *testing.T) {
	var roots []string
	b := backend{
		createPool: func(ctx context.Context, cfg config.Config) (admin.Pool, error) {
			roots = append(roots, "create "+cfg.Root)
			return fakeReports{}.Pool(ctx)
		},
		recordedPool: recorded(metadata.PoolRecord{Mode: config.ModeLoop, Name: "thinsnap", BlockSize: 64 << 10}),
		destroyPool: func(_ context.Context, cfg config.Config) error {
			roots = append(roots, "destroy "+cfg.Root)
			return nil
		},
	}
	require.Equal(t, result{exitOK, poolText, ""}, try(t, false, b, "pool", "create", "--root", "/srv/a"))
	require.Equal(t, result{exitOK, "destroyed pool thinsnap\n", ""}, try(t, false, b, "pool", "destroy", "--yes"))
	b.planPool = func(_ context.Context, cfg config.Config) ([]string, error) {
		return []string{"one " + cfg.Root, "two"}, nil
	}
	require.Equal(t, result{exitOK, "one /srv/b\ntwo\n", ""}, try(t, false, b, "pool", "create", "--dry-run", "--root", "/srv/b"))
	require.Equal(t, []string{"create /srv/a", "destroy /var/lib/thinsnap"}, roots)

	b.destroyPool = func(context.Context, config.Config) error { return errdefs.ErrUnavailable }
	require.Equal(t, exitFailure, try(t, false, b, "pool", "destroy", "--yes").code, "not the code for a missing daemon")
	b.destroyPool = func(context.Context, config.Config) error {
		return errors.Join(errors.New("device thinsnap-snap-3 is open"), errors.New("pool kept"))
	}
	require.Equal(t, result{exitFailure, "", "thinsnap: device thinsnap-snap-3 is open; pool kept\n"},
		try(t, false, b, "pool", "destroy", "--yes"), "one line")
}

func recorded(rec metadata.PoolRecord) func(context.Context, config.Config) (metadata.PoolRecord, error) {
	return func(context.Context, config.Config) (metadata.PoolRecord, error) { return rec, nil }
}

// TestDestroyDescribesRecordedPool: the description is that of the recorded pool, even if the
// configuration has changed.
func TestDestroyDescribesRecordedPool(t *testing.T) {
	const (
		lvm      = "[pool.direct_lvm]\ndevice = \"/dev/xdf\"\n"
		existing = "[pool.existing]\ndevice = \"vg/pool\"\n"
	)
	loopPool := metadata.PoolRecord{Mode: config.ModeLoop, Name: "thinsnap", BlockSize: 64 << 10}
	lvmPool := metadata.PoolRecord{
		Mode: config.ModeDirectLVM, Name: "thinsnap", BlockSize: 64 << 10,
		LVM: metadata.LVMPool{Disk: "/dev/xdf", DataPercent: 95, MetadataPercent: 1},
	}
	existingPool := metadata.PoolRecord{Mode: config.ModeExisting, Name: "thinsnap", Existing: metadata.ExistingPool{MappedDevice: "vg-pool"}}
	other := func(mode string) string {
		return fmt.Sprintf(" (mode %q, as it was created; the configuration describes another pool)", mode)
	}
	for _, test := range []struct {
		rec              metadata.PoolRecord
		text, what, done string
	}{
		{loopPool, "", "this removes pool thinsnap in /srv/x, with all its snapshots", "destroyed pool thinsnap"},
		{lvmPool, lvm, "this removes pool thinsnap of /srv/x, made on disk /dev/xdf, with all its snapshots", "destroyed pool thinsnap, made on disk /dev/xdf"},
		{
			existingPool, existing, "this removes all snapshots of /srv/x from pool vg-pool; the pool stays",
			"removed all snapshots of /srv/x from pool vg-pool",
		},
		{
			loopPool, existing, "this removes pool thinsnap in /srv/x, with all its snapshots" + other("loop"),
			"destroyed pool thinsnap" + other("loop"),
		},
		{
			lvmPool, existing, "this removes pool thinsnap of /srv/x, made on disk /dev/xdf, with all its snapshots" + other("direct-lvm"),
			"destroyed pool thinsnap, made on disk /dev/xdf" + other("direct-lvm"),
		},
		{
			existingPool, lvm, "this removes all snapshots of /srv/x from pool vg-pool; the pool stays" + other("existing"),
			"removed all snapshots of /srv/x from pool vg-pool" + other("existing"),
		},
		{
			loopPool, "[pool]\nname = \"new\"\n", "this removes pool thinsnap in /srv/x, with all its snapshots" + other("loop"),
			"destroyed pool thinsnap" + other("loop"),
		},
		{
			lvmPool, "[pool.direct_lvm]\ndevice = \"/dev/xdg\"\n",
			"this removes pool thinsnap of /srv/x, made on disk /dev/xdf, with all its snapshots" + other("direct-lvm"),
			"destroyed pool thinsnap, made on disk /dev/xdf" + other("direct-lvm"),
		},
		{
			existingPool, "[pool.existing]\ndevice = \"vg/other\"\n",
			"this removes all snapshots of /srv/x from pool vg-pool; the pool stays" + other("existing"),
			"removed all snapshots of /srv/x from pool vg-pool" + other("existing"),
		},
		{
			metadata.PoolRecord{}, lvm, "this removes the store in /srv/x, which has no pool",
			"removed the store in /srv/x, which had no pool",
		},
	} {
		file := filepath.Join(t.TempDir(), "config.toml")
		require.NoError(t, os.WriteFile(file, []byte(test.text), 0o600))
		destroyed := 0
		b := backend{recordedPool: recorded(test.rec), destroyPool: func(context.Context, config.Config) error {
			destroyed++
			return nil
		}}
		args := []string{"--config", file, "pool", "destroy", "--root", "/srv/x"}
		require.Equal(t, result{exitUsage, "", "thinsnap: " + test.what + "; to do it, add --yes\n"}, try(t, false, b, args...))
		require.Zero(t, destroyed)
		require.Equal(t, result{exitOK, test.done + "\n", ""}, try(t, false, b, append(args, "--yes")...))
		require.Equal(t, 1, destroyed)
	}
}

func TestNothingToDestroy(t *testing.T) {
	got := try(t, false, realBackend(), "pool", "destroy", "--yes", "--root", filepath.Join(t.TempDir(), "none"))
	require.Equal(t, exitFailure, got.code)
	require.Contains(t, got.err, "no thinsnap data in")
}

func TestVersion(t *testing.T) {
	require.Regexp(t, `^thinsnap \S+\nrevision \S+\ngo\S+ linux/\w+\n$`, output(t, false, "version"))
	require.Contains(t, output(t, false, "version", "--json"), `"platform": "linux/`)
	require.Contains(t, output(t, false, "completion", "bash"), "thinsnap")
	require.Contains(t, output(t, false), "Exit codes:")
}

func TestShortKey(t *testing.T) {
	require.Equal(t, "default/1/sha256:111111111111…", shortKey(layerKey))
	require.Equal(t, "default/3/box", shortKey("default/3/box"))
}

func TestPrintable(t *testing.T) {
	for key, want := range map[string]string{
		"default/1/sha256:aa": "default/1/sha256:aa", "tête à tête 漢": "tête à tête 漢", "a b": "a b",
		"\x1b[2J": `"\x1b[2J"`, "a\nb": `"a\nb"`, "a\xff": `"a\xff"`, "\u202e": `"\u202e"`,
	} {
		require.Equal(t, want, printable(key))
	}
}
