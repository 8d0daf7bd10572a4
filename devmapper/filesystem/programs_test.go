package filesystem

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMakeRunsTheSystemsMkfs: Make ignores programs in the caller's PATH.
func TestMakeRunsTheSystemsMkfs(t *testing.T) {
	dir := t.TempDir()
	ran := filepath.Join(dir, "ran")
	for _, name := range []string{"mkfs.ext4", "mkfs.xfs"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\ntouch "+ran+"\nexit 1\n"), 0o700))
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for typ, bytes := range map[string]int64{Ext4: MinExt4, XFS: MinXFS} {
		image := filepath.Join(t.TempDir(), "image")
		require.NoError(t, os.WriteFile(image, nil, 0o600))
		require.NoError(t, os.Truncate(image, bytes))
		require.NoError(t, Make(t.Context(), image, typ, nil))
		require.NoFileExists(t, ran)
		identified, err := Identify(image)
		require.NoError(t, err)
		require.Equal(t, typ, identified.Type)
	}
}
