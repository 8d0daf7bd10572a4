package vm

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestFindKernel(t *testing.T) {
	cache := t.TempDir()
	now := time.Now()
	for path, unpacked := range map[string]time.Time{
		"kernel/6.1.0-1":       now.Add(-time.Hour),
		"kernel/6.1.0-2":       now,
		"kernel-trixie/6.12.1": now.Add(-2 * time.Hour),
		"kernel-sid/7.2.1":     now,
	} {
		release := filepath.Base(path)
		modules := filepath.Join(cache, path, "lib", "modules", release)
		require.NoError(t, os.MkdirAll(filepath.Join(cache, path, "boot"), 0o755))
		require.NoError(t, os.MkdirAll(modules, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(cache, path, "boot", "vmlinuz-"+release), nil, 0o600))
		if path == "kernel-sid/7.2.1" {
			continue // partly unpacked
		}
		dep := filepath.Join(modules, "modules.dep")
		require.NoError(t, os.WriteFile(dep, nil, 0o600))
		require.NoError(t, os.Chtimes(dep, unpacked, unpacked))
	}
	for suite, release := range map[string]string{"": "6.1.0-2", "trixie": "6.12.1"} {
		k, err := findKernel(cache, suite)
		require.NoError(t, err)
		require.Equal(t, release, k.release)
		require.FileExists(t, k.image)
	}
	_, err := findKernel(cache, "sid")
	require.ErrorContains(t, err, "kernel-sid: run integration/setup.sh")
}

func TestPreferWithSuite(t *testing.T) {
	t.Setenv("THINSNAP_KERNEL", "sid")
	for _, where := range []string{"", "auto", "always"} {
		t.Setenv("THINSNAP_VM", where)
		direct, _, err := Prefer()
		require.NoError(t, err)
		require.False(t, direct)
	}
	t.Setenv("THINSNAP_VM", "never")
	_, _, err := Prefer()
	require.ErrorContains(t, err, "needs a guest")
}
