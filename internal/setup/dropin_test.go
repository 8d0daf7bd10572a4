package setup

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDropInMode: only users who can read all files can read the drop-in, which may repeat a
// password.
func TestDropInMode(t *testing.T) {
	dir := t.TempDir()
	var p planner
	require.Zero(t, p.mode())
	for name, mode := range map[string]fs.FileMode{"config.toml": 0o644, "registry.toml": 0o640, "other.toml": 0o604} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, nil, mode))
		p.files = append(p.files, file{path: path})
	}
	require.Equal(t, fs.FileMode(0o600), p.mode())
}
