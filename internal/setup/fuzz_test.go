package setup

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// memory is a disk with a first file, and the same text for every file below /import.
func memory(first, imported []byte) disk {
	return disk{
		read: func(path string, most int) ([]byte, error) {
			text := first
			if strings.HasPrefix(path, "/import") {
				text = imported
			} else if path != "/config.toml" {
				return nil, fs.ErrNotExist
			}
			if len(text) > most {
				return nil, tooMuch(path)
			}
			return text, nil
		},
		glob: func(string) ([]string, error) { return []string{"/import/a", "/import/b"}, nil },
	}
}

// FuzzLoad: an accepted configuration has all keys that the built-in needs, and loads the same
// again. A rejected one gives an error with a class.
func FuzzLoad(f *testing.F) {
	part := "version = 2\n" + section + "discard_blocks = true\n"
	f.Add([]byte("version = 2\n"+minimal), []byte(""))
	f.Add([]byte("imports = [\"import\", \"/import/*\"]\n[plugins.devmapper]\npool_name = \"p\"\nbase_image_size = \"1G\"\n"), []byte(part))
	f.Add([]byte("version = 3\nimports = [\"x/../import/a\"]\n"+minimal+"fs_type = \"xfs\"\n"), []byte(part+"imports = [\"*\"]\n"))
	f.Add([]byte("version = 4\nimports = [\"/import\"]\ndisabled_plugins = [\"a.b.c.d\"]\n[proxy_plugins.x]\ntype = \"snapshot\"\n"), []byte(minimal))
	f.Add([]byte("plugins.a.b.c.snapshotter = \"x\"\n"+minimal+"a = [{ b = [1979-05-27, 1.5, inf, \"\"] }]\n"), []byte(""))
	f.Add([]byte("version = 2\n"+minimal+strings.Repeat("[a."+strings.Repeat("a.", maxDepth)+"a]\n", 3)), []byte("\x00"))
	f.Fuzz(func(t *testing.T, first, imported []byte) {
		cfg, err := memory(first, imported).load("/config.toml")
		if err != nil {
			classes := []error{
				errdefs.ErrNotFound, errdefs.ErrInvalidArgument, errdefs.ErrNotImplemented, errdefs.ErrFailedPrecondition,
			}
			for _, class := range classes {
				if errors.Is(err, class) {
					return
				}
			}
			require.Fail(t, "no class", "%v", err)
		}
		require.NotEmpty(t, cfg.Files)
		require.LessOrEqual(t, len(cfg.Files), maxFiles)
		require.LessOrEqual(t, cfg.Version, maxVersion)
		require.NotEmpty(t, cfg.Root)
		require.NotEmpty(t, cfg.Devmapper.RootPath)
		completed := cfg.Devmapper
		require.NoError(t, completed.complete(cfg.Root))
		require.Equal(t, completed, cfg.Devmapper)
		again, err := memory(first, imported).load("/config.toml")
		require.NoError(t, err)
		require.Equal(t, cfg, again)
	})
}

// FuzzSwitch: a configuration is rejected, or its changed files have the proxy in place of the
// built-in and are otherwise equal, as verify checks. A second switch changes nothing.
func FuzzSwitch(f *testing.F) {
	f.Add([]byte("version = 2\n"+minimal), []byte("[plugins.a]\nsnapshotter = 'devmapper'"))
	f.Add([]byte("imports = [\"import\", \"/import/*\"]\n[plugins.devmapper]\n"), []byte("required_plugins=[\"devmapper\",]"))
	f.Add([]byte("disabled_plugins = [\n# a\n'x' ,\n]\nplugins.a = [[{snapshotter=\"devmapper\"}]]"), []byte(""))
	f.Add([]byte("version = 3\r\nproxy_plugins={\"a b\"={type='snapshot'}}"), []byte("\x00"))
	f.Add([]byte("a = 1\nversion = 2 # x"), []byte("version = 1"))
	f.Fuzz(func(t *testing.T, first, imported []byte) {
		d, err := memory(first, imported).difference("/config.toml", toThinsnap.forward)
		if err != nil {
			return
		}
		require.Equal(t, len(d.Files) == 0, d.Patch == "")
		for _, file := range strings.Split(d.Patch, "--- /")[1:] {
			name, rest, _ := strings.Cut(file, "\t\n+++ /")
			_, hunks, _ := strings.Cut(rest, "\n")
			if name == "config.toml" {
				first = patched(t, first, hunks)
			} else {
				imported = patched(t, imported, hunks)
			}
			if strings.Count(d.Patch, "+++ /") > 2 {
				return // one text for many files
			}
		}
		again, err := memory(first, imported).difference("/config.toml", toThinsnap.forward)
		require.NoError(t, err)
		require.Empty(t, again)
	})
}
