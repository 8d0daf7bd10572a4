package setup

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/stretchr/testify/require"
)

var toThinsnap = Switch{
	Proxy: "thinsnap", Address: "/run/thinsnap/thinsnap.sock", Root: "/var/lib/thinsnap", Platform: "linux/amd64",
}

// applied applies a patch to its files, and fails if a line differs.
func applied(t *testing.T, d Difference) {
	t.Helper()
	for _, file := range strings.Split(d.Patch, "--- ")[1:] {
		name, rest, found := strings.Cut(file, "\t\n+++ ")
		require.True(t, found, file)
		body, found := strings.CutPrefix(rest, name+"\t\n")
		require.True(t, found, file)
		require.Contains(t, d.Files, name)
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(name, patched(t, text, body), 0o600))
	}
	require.Len(t, d.Files, strings.Count(d.Patch, "\n+++ "))
}

// patched applies the hunks of one file.
func patched(t *testing.T, text []byte, hunks string) []byte {
	t.Helper()
	old := strings.SplitAfter(string(text), "\n")
	if old[len(old)-1] == "" {
		old = old[:len(old)-1]
	}
	var b bytes.Buffer
	at, grown := 0, 0
	for _, hunk := range strings.Split(hunks, "@@ -")[1:] {
		head, body, found := strings.Cut(hunk, " @@\n")
		require.True(t, found, hunk)
		before, after, found := strings.Cut(head, " +")
		require.True(t, found, head)
		first, count := hunkRange(t, before)
		newFirst, newCount := hunkRange(t, after)
		require.Equal(t, first+grown, newFirst, "the hunk begins elsewhere")
		b.WriteString(strings.Join(old[at:first], ""))
		at = first
		body = strings.ReplaceAll(body, "\n\\ No newline at end of file\n", "\x00")
		for _, line := range strings.FieldsFunc(strings.ReplaceAll(strings.ReplaceAll(body, "\n", "\n\x01"), "\x00", "\x00\x01"),
			func(r rune) bool { return r == '\x01' }) {
			mark, text := line[0], strings.TrimSuffix(line[1:], "\x00")
			if mark != '+' {
				require.Equal(t, old[at], text)
				at, count = at+1, count-1
			}
			if mark != '-' {
				b.WriteString(text)
				newCount--
			}
			grown += map[byte]int{'+': 1, '-': -1}[mark]
		}
		require.Zero(t, count)
		require.Zero(t, newCount)
	}
	b.WriteString(strings.Join(old[at:], ""))
	return b.Bytes()
}

// hunkRange returns the index of the first line, and the number of lines.
func hunkRange(t *testing.T, text string) (first, count int) {
	t.Helper()
	start, length, found := strings.Cut(text, ",")
	require.True(t, found, text)
	first, err := strconv.Atoi(start)
	require.NoError(t, err)
	count, err = strconv.Atoi(length)
	require.NoError(t, err)
	if count > 0 {
		first--
	}
	return first, count
}

// switched requires that a configuration has the proxy, and does not name the built-in.
func switched(t *testing.T, path string, name string) {
	t.Helper()
	cfg, err := Load(path)
	require.NoError(t, err)
	for _, use := range cfg.Uses {
		require.NotEqual(t, devmapperName, use.Snapshotter, use.Key)
	}
	require.Equal(t, Proxy{"snapshot", "/run/thinsnap/thinsnap.sock"}, cfg.Proxies[name])
	require.Equal(t, name, cfg.ProxyAt("/run/thinsnap/thinsnap.sock"))
	require.True(t, cfg.Devmapper.Disabled)
}

// TestSwitchOfReleases: the complete default configurations of three releases, with the built-in, a
// second runtime and other features of each version.
func TestSwitchOfReleases(t *testing.T) {
	for release, uses := range map[string]int{"1.6": 2, "1.7": 2, "2.4": 3} {
		t.Run(release, func(t *testing.T) {
			text, err := os.ReadFile("testdata/containerd-" + release + ".toml")
			require.NoError(t, err)
			path := written(t, map[string]string{"config.toml": string(text)})
			before, err := Load(path)
			require.NoError(t, err)
			named := func(c Config, snapshotter string) (keys []string) {
				for _, use := range c.Uses {
					if use.Snapshotter == snapshotter {
						keys = append(keys, use.Key)
					}
				}
				return keys
			}
			require.Len(t, named(before, devmapperName), uses)

			forward, err := toThinsnap.Forward(path)
			require.NoError(t, err)
			require.Equal(t, []string{path}, forward.Files)
			applied(t, forward)
			switched(t, path, "thinsnap")
			after, err := Load(path)
			require.NoError(t, err)
			require.Equal(t, named(before, devmapperName), named(after, "thinsnap"))
			require.Equal(t, named(before, "overlayfs"), named(after, "overlayfs"))
			changed, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NotContains(t, string(changed), "required_plugins = [\"io.containerd.snapshotter.v1.devmapper")
			again, err := toThinsnap.Forward(path)
			require.NoError(t, err)
			require.Empty(t, again)

			back, err := toThinsnap.Back(path)
			require.NoError(t, err)
			applied(t, back)
			restored, err := Load(path)
			require.NoError(t, err)
			require.Equal(t, before.Uses, restored.Uses)
			require.Equal(t, before.Devmapper, restored.Devmapper)
		})
	}
}

// TestPatch: the printed patch.
func TestPatch(t *testing.T) {
	path := written(t, map[string]string{
		"config.toml": "version = 2\nimports = [\"a.toml\"]\nrequired_plugins = [\n  \"x.y.z.w\", # the first\n" +
			"  'io.containerd.snapshotter.v1.devmapper',\n]\n\n[debug]\n  level = \"info\"\n\n" + minimal,
		"a.toml": "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  snapshotter = 'devmapper' # Kata",
	})
	dir := filepath.Dir(path)
	d, err := toThinsnap.Forward(path)
	require.NoError(t, err)
	require.Equal(t, `--- DIR/config.toml	
+++ DIR/config.toml	
@@ -1,9 +1,7 @@
 version = 2
+disabled_plugins = ["io.containerd.snapshotter.v1.devmapper"]
 imports = ["a.toml"]
-required_plugins = [
-  "x.y.z.w", # the first
-  'io.containerd.snapshotter.v1.devmapper',
-]
+required_plugins = ["x.y.z.w"]
 
 [debug]
   level = "info"
@@ -11,3 +9,11 @@
 [plugins."io.containerd.snapshotter.v1.devmapper"]
 pool_name = "pool"
 base_image_size = "10GB"
+
+[proxy_plugins.thinsnap]
+  type = "snapshot"
+  address = "/run/thinsnap/thinsnap.sock"
+  platform = "linux/amd64"
+  capabilities = ["remap-ids"]
+  [proxy_plugins.thinsnap.exports]
+    root = "/var/lib/thinsnap"
--- DIR/a.toml	
+++ DIR/a.toml	
@@ -1,3 +1,3 @@
 version = 2
 [plugins."io.containerd.grpc.v1.cri".containerd]
-  snapshotter = 'devmapper' # Kata
\ No newline at end of file
+  snapshotter = 'thinsnap' # Kata
\ No newline at end of file
`, strings.ReplaceAll(d.Patch, dir, "DIR"))
	applied(t, d)
	switched(t, path, "thinsnap")
}

// TestSwitchOfForms: each form in which a key can be written.
func TestSwitchOfForms(t *testing.T) {
	const first = "version = 2\nimports = [\"a\"]\n"
	const cri = "plugins.\"io.containerd.grpc.v1.cri\".containerd"
	for name, files := range map[string]map[string]string{
		"1.x replaces the section of CRI by that of an import": {
			"config.toml": first + minimal + "[" + cri + "]\nsnapshotter = \"devmapper\"\n",
			"a":           "version = 2\n[" + cri + "]\nsnapshotter = \"devmapper\"\n[" + cri + ".runtimes.kata]\nsnapshotter = \"devmapper\"\n",
		},
		"the section is whole in the import": {
			"config.toml": first + "[" + cri + "]\nsnapshotter = \"overlayfs\"\n",
			"a":           "version = 2\n[" + cri + "]\nsnapshotter = \"devmapper\"\n" + minimal,
		},
		"version 1":           {"config.toml": "[plugins.devmapper]\npool_name = \"p\"\nbase_image_size = \"1GB\"\n[plugins.cri.containerd]\nsnapshotter=\"devmapper\"\n"},
		"version 1, required": {"config.toml": "required_plugins = ['devmapper']\n[plugins.devmapper]\npool_name = \"p\"\nbase_image_size = \"1GB\"\n"},
		"version 1 that imports version 2": {
			"config.toml": "imports = [\"a\"]\n" + minimal, "a": "version = 2\n[" + cri + "]\nsnapshotter = \"devmapper\"\n",
		},
		"inline tables and dotted keys": {"config.toml": "version = 3\nproxy_plugins = { }\ndisabled_plugins = [ # none\n]\n" +
			"plugins.'io.containerd.transfer.v1.local' = { unpack_config = [{ platform = \"linux\", snapshotter = '''devmapper''' }, {Snapshotter=\"devmapper\"}] }\n" + minimal},
		"a proxy in braces": {"config.toml": "version = 3\nproxy_plugins = {x={type=\"diff\",address=\"/run/thinsnap/thinsnap.sock\"}}\n" + minimal},
		"a proxy as a key":  {"config.toml": "version = 3\nproxy_plugins.x.type = \"content\"\n" + minimal},
		"the proxy is known in an import": {
			"config.toml": first + minimal,
			"a":           "version = 2\n[proxy_plugins.thinsnap]\ntype = \"snapshot\"\naddress = \"/run/thinsnap/thinsnap.sock\"\n",
		},
		"disabled in an import": {
			"config.toml": first + minimal + "[" + cri + "]\nsnapshotter = \"devmapper\"\n",
			"a":           "version = 2\ndisabled_plugins = [\"a.b.c.d\", \"io.containerd.snapshotter.v1.devmapper\"]\n",
		},
		"no line end at the end":             {"config.toml": strings.TrimSpace("version = 2\n" + minimal)},
		"the version is the last line":       {"config.toml": "imports = [\"a\"]\nversion = 2", "a": "version = 2\n" + minimal},
		"lines that end as on Windows":       {"config.toml": strings.ReplaceAll("version = 2\n["+cri+"]\nsnapshotter = \"devmapper\"\n"+minimal, "\n", "\r\n")},
		"a list in many lines":               {"config.toml": "version = 2\ndisabled_plugins = [\n  \"a.b.c.d\",\n]\n" + minimal},
		"an import of an older version":      {"config.toml": "version = 3\nimports = [\"a\"]\n" + minimal, "a": "[plugins.cri.containerd]\nsnapshotter = \"devmapper\"\n"},
		"an import of which nothing changes": {"config.toml": first + minimal, "a": ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := written(t, files)
			d, err := toThinsnap.Forward(path)
			require.NoError(t, err)
			applied(t, d)
			switched(t, path, "thinsnap")
			again, err := toThinsnap.Forward(path)
			require.NoError(t, err)
			require.Empty(t, again)
			back, err := toThinsnap.Back(path)
			require.NoError(t, err)
			applied(t, back)
			cfg, err := Load(path)
			require.NoError(t, err)
			require.False(t, cfg.Devmapper.Disabled)
		})
	}
}

func TestSwitchRefuses(t *testing.T) {
	thinsnap := "[proxy_plugins.thinsnap]\ntype = \"snapshot\"\naddress = \"/run/thinsnap/thinsnap.sock\"\n"
	for _, c := range []struct {
		name, text, want string
		class            error
	}{
		{"devmapper", minimal, `"devmapper" is a snapshotter of containerd's own`, errdefs.ErrInvalidArgument},
		{"a b", minimal, "the name of the proxy plugin", errdefs.ErrInvalidArgument},
		{"other", thinsnap, `the proxy plugin "thinsnap" has the address /run/thinsnap/thinsnap.sock already`, errdefs.ErrFailedPrecondition},
		{"thinsnap", strings.ReplaceAll(thinsnap, "snap.sock", "x.sock"), `there is a proxy plugin "thinsnap" already, of type "snapshot" at "/run/thinsnap/thinx.sock"`, errdefs.ErrFailedPrecondition},
		{"thinsnap", "disabled_plugins = 3\n", "cannot decode TOML integer", errdefs.ErrInvalidArgument},
		{"thinsnap", "proxy_plugins = {}\nProxy_Plugins = {}\n", "cannot change a file of this form", errdefs.ErrNotImplemented},
	} {
		s := toThinsnap
		s.Proxy = c.name
		_, err := s.Forward(written(t, map[string]string{"config.toml": "version = 2\n" + c.text}))
		require.ErrorIs(t, err, c.class)
		require.ErrorContains(t, err, c.want)
	}
	_, err := toThinsnap.Forward("/none/config.toml")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
}

// TestSwitchOfRandomFiles: for containerd, the changed files differ from the old ones only in the
// snapshotter. The random files import each other, in all versions.
func TestSwitchOfRandomFiles(t *testing.T) {
	level := log.GetLevel()
	require.NoError(t, log.SetLevel("error"))
	t.Cleanup(func() { require.NoError(t, log.SetLevel(level.String())) })
	changed := 0
	for seed := range uint64(200) {
		path := written(t, randomFiles(rand.New(rand.NewPCG(seed, 16))))
		before, err := loadedByContainerd2(t, path)
		require.NoError(t, err, seed)
		d, err := toThinsnap.Forward(path)
		require.NoError(t, err, seed)
		applied(t, d)
		after, err := loadedByContainerd2(t, path)
		require.NoError(t, err, seed)
		for name, section := range before.Plugins {
			for _, use := range uses(map[string]any{name: section}) {
				if use.Snapshotter == devmapperName {
					changed++
				}
			}
			renameIn(section, devmapperName, "thinsnap")
		}
		require.Equal(t, before.Plugins, after.Plugins, seed)
		require.Contains(t, after.DisabledPlugins, devmapperURI, seed)
		require.Equal(t, "snapshot", after.ProxyPlugins["thinsnap"].Type)
		require.Equal(t, "/var/lib/thinsnap", after.ProxyPlugins["thinsnap"].Exports["root"])
		delete(after.ProxyPlugins, "thinsnap")
		require.Equal(t, slices.Sorted(maps.Keys(before.ProxyPlugins)), slices.Sorted(maps.Keys(after.ProxyPlugins)))
	}
	require.Greater(t, changed, 20, "too few files name the built-in")
}
