package config

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	cfg, err := Parse([]byte(`
root = "/srv/thinsnap"
metrics_address = "127.0.0.1:9777"
[log]
format = "json"
[pool]
block_size = 131072
min_free_space = "0%"
autoextend_threshold = "70%"
autoextend_percent = 30
spares_max = 0
discard_on_remove = false
[pool.loop]
data_size = "1TiB"
[filesystem]
type = "xfs"
mount_options = ["noatime", "nodev"]
`))
	require.NoError(t, err)
	want := Default()
	want.Root = "/srv/thinsnap"
	want.MetricsAddress = "127.0.0.1:9777"
	want.Log.Format = "json"
	want.Pool.BlockSize = 128 * kib
	want.Pool.MinFreeSpace = 0
	want.Pool.Loop.DataSize = 1024 * gib
	want.Filesystem.Type = XFS
	want.Filesystem.MountOptions = []string{"noatime", "nodev"}
	want.Pool.AutoextendThreshold, want.Pool.AutoextendPercent = 70, 30
	want.Pool.SparesMax = 0
	want.Pool.DiscardOnRemove = false
	require.Equal(t, want, cfg)
}

func TestParseNamesTheLine(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"a key of earlier versions": {
			"[pool.loop]\ndata_limit = \"200GiB\"\n",
			[]string{"line 2: unknown key pool.loop.data_limit: remove it: pool.loop.data_size is the size up to which"},
		},
		"tables of earlier versions": {
			"root = \"/a\"\n[spares]\nmost = 0\n[remove]\ndiscard = false\n", []string{
				"line 2: unknown key spares: use spares_max in [pool] instead of most in [spares]",
				"line 4: unknown key remove: use discard_on_remove in [pool] instead of discard in [remove]",
			},
		},
		"keys of tables of earlier versions": {
			"remove.discard = false\nspares = {most = 1}\n", []string{
				"line 1: unknown key remove.discard: use discard_on_remove in [pool]",
				"line 2: unknown key spares: use spares_max in [pool]",
			},
		},
		"unknown keys": {
			"root = \"/a\"\n[pool]\nnam = \"x\"\n\n[pool.lopp]\ndata_size = \"1G\"\n",
			[]string{"line 3: unknown key pool.nam", "line 5: unknown key pool.lopp"},
		},
		"keys of a later version of thinsnap": {
			"[pool]\nencryption = true\n", []string{"line 2: unknown key pool.encryption"},
		},
		"not TOML":    {"root = \"/a\"\nroot /b\n", []string{"line 2: "}},
		"a key twice": {"root = \"/a\"\nroot = \"/b\"\n", []string{"root"}},
		"a wrong type": {
			"[pool]\ndiscard_on_remove = \"yes\"\n", []string{"line 2: pool.discard_on_remove: "},
		},
		"a bad size": {
			"[pool]\n\nblock_size = \"64 KiBi\"\n", []string{`line 3: pool.block_size: "64 KiBi" is not a size`},
		},
		"a negative size": {"[pool]\nblock_size = -1\n", []string{"line 2: pool.block_size: "}},
		"a bad percentage": {
			"[pool]\nmin_free_space = \"lots\"\n", []string{`line 2: pool.min_free_space: "lots" is not a percentage`},
		},
		"another version with other keys": {
			"version = 2\nstore = \"/x\"\n", []string{"version = 2: not supported: this version of thinsnap reads version 1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(test.text))
			var problems *Error
			require.ErrorAs(t, err, &problems)
			require.Len(t, problems.Problems, len(test.want))
			for i, want := range test.want {
				require.ErrorContains(t, problems.Problems[i], want)
				require.NotContains(t, problems.Problems[i].Error(), "\n")
			}
		})
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "none.toml")
	_, err := Load(missing)
	require.ErrorIs(t, err, fs.ErrNotExist)
	cfg, err := LoadOptional(missing)
	require.NoError(t, err)
	require.Equal(t, Default(), cfg)

	file := filepath.Join(dir, "config.toml")
	require.NoError(t, os.WriteFile(file, []byte("[pool]\nname = \"a b\"\n"), 0o600))
	for _, load := range []func(string) (Config, error){Load, LoadOptional} {
		_, err = load(file)
		require.ErrorContains(t, err, file+`: pool.name = "a b": must be 1 to 64 letters`)
	}
}

// TestAllProblemsAtOnce: one error has all problems of every kind, each with its line.
func TestAllProblemsAtOnce(t *testing.T) {
	_, err := Parse([]byte(`root = "here"
nonsense = 1
metrics_address = 7
[pool]
min_free_space = "lots"
block_size = "63KiB"
[pool.loop]
data_size = [
  "1GiB",
  "2GiB",
]
[filesystem]
type = "zfs"
mkfs_options = [
  "-I",
  3,
]
[unknown]
a = 1
`))
	var found *Error
	require.ErrorAs(t, err, &found)
	var lines []string
	for _, problem := range found.Problems {
		lines = append(lines, problem.Error())
	}
	all := strings.Join(lines, "\n")
	for _, want := range []string{
		"line 2: unknown key nonsense", "line 3: ", "line 5: ", "line 8: ", "line 16: ", "line 18: unknown key unknown",
		`root = "here"`, `pool.block_size = "63KiB"`, `filesystem.type = "zfs"`,
	} {
		require.Contains(t, all, want)
	}
	require.Len(t, lines, 9, all)
}

func TestSyntaxErrorIsOneProblem(t *testing.T) {
	for _, text := range []string{"root = \"/a\"\n[pool\nx = 1\n", "root = \n", "[pool]\n[pool]\n", "a = 1\na = 2\n"} {
		_, err := Parse([]byte(text))
		var found *Error
		require.ErrorAs(t, err, &found)
		require.Len(t, found.Problems, 1, text)
		require.ErrorContains(t, err, "line ")
	}
}

// TestProblemsAreInWords: for each key and table, the error for a value of a wrong type has the
// key's rule and no Go types. All problems are returned at once, in the order of the file.
func TestProblemsAreInWords(t *testing.T) {
	var keys int
	for _, s := range sections() {
		var all []string
		for _, k := range s.keys {
			_, name, inTable := strings.Cut(k.name[len(s.name):], ".")
			if !inTable {
				name = k.name
			}
			for _, value := range []string{"1e400", "[[1], [2]]", "{ x = 1 }", "1979-05-27", "-1", "true", "1.5", "\"\\u0001\"", "[1]"} {
				text := name + " = " + value + "\n"
				if s.name != "" {
					text = "[" + s.name + "]\n" + text
				}
				requireWords(t, text)
			}
			if k.name != "version" {
				all = append(all, name+" = 1979-05-27")
			}
			keys++
		}
		header := ""
		if s.name != "" {
			header = "[" + s.name + "]"
			requireWords(t, s.name+" = 3")
			requireWords(t, s.name+" = [1]")
		}
		problems := requireWords(t, header+"\n"+strings.Join(all, "\n"))
		require.Len(t, problems, len(all), problems)
		for i, p := range problems {
			require.Regexp(t, fmt.Sprintf("^line %d: ", i+2), p.Error())
		}
	}
	require.Greater(t, keys, 20)
}

// requireWords requires that no problem of the text names Go types.
func requireWords(t *testing.T, text string) []error {
	t.Helper()
	_, err := Parse([]byte(text))
	if err == nil {
		return nil
	}
	var invalid *Error
	require.ErrorAs(t, err, &invalid)
	for _, p := range invalid.Problems {
		require.NotRegexp(t, `struct|config\.[A-Z]|uint|int64|float64|reflect|toml:|stored in|UnmarshalText`, p.Error(), text)
	}
	return invalid.Problems
}
