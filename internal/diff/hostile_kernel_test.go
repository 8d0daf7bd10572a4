package diff_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/continuity/fs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/diff"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// hostileImages creates two images that were changed on the device, as a virtual machine can.
func hostileImages(t *testing.T, fill func(dir string), plant func(i images), change func(dir string)) images {
	t.Helper()
	i := newImages(t, []string{"-O", "^metadata_csum", "-N", "256"}, fill, nil)
	plant(i)
	require.NoError(t, os.Remove(i.lower))
	copySparse(t, i.upper, i.lower)
	i.change(t, change)
	return i
}

// TestDirectoryThatIsNamedAFile: a directory entry claims that another directory is a file. A
// search by entries does not find its content.
func TestDirectoryThatIsNamedAFile(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	i := hostileImages(t, func(dir string) {
		write(t, dir, "holder/named-a-file/changed", "before")
		write(t, dir, "holder/named-a-file/first", "before")
		require.NoError(t, os.Mkdir(filepath.Join(dir, "beside"), 0o755))
		require.NoError(t, os.Link(filepath.Join(dir, "holder/named-a-file/first"), filepath.Join(dir, "beside/second")))
	}, func(i images) {
		i.edit(t, "/holder", func(block []byte, _ bool) bool {
			at := bytes.Index(block, []byte("named-a-file"))
			if at < 0 {
				return false
			}
			require.EqualValues(t, 2, block[at-1]) // EXT4_FT_DIR
			block[at-1] = 1                        // EXT4_FT_REG_FILE
			return true
		})
	}, func(dir string) {
		write(t, dir, "holder/named-a-file/changed", "AFTER!")
	})
	listing := i.list(t)
	require.Equal(t, []diff.Change{{Kind: fs.ChangeKindModify, Path: "/holder/named-a-file/changed"}}, listing.Changes)
	require.Equal(t, diff.Walk, listing.Level)
	require.Contains(t, listing.Fallback, "not proved")
}

// TestPipeWithASize: a pipe is not opened for a comparison, because that waits for a writer.
func TestPipeWithASize(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	i := hostileImages(t, func(dir string) {
		require.NoError(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o644))
		requireTime(t, filepath.Join(dir, "pipe"))
	}, func(i images) {
		debugfs(t, i.upper, "-w", "-R", "set_inode_field /pipe size 1")
	}, func(dir string) {
		require.NoError(t, os.Chmod(filepath.Join(dir, "pipe"), 0o644))
	})
	i.opened(t, func(lower, upper diff.Volume, changed []diff.Range) {
		_, err := diff.List(t.Context(), lower, upper, changed)
		require.ErrorContains(t, err, "/pipe")
	})
}

// TestDirectoriesWithManyNames: a few directories with two names each have more paths than can be
// walked.
func TestDirectoriesWithManyNames(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	const depth = 40
	i := hostileImages(t, func(dir string) {
		for range depth {
			dir = filepath.Join(dir, "a")
			require.NoError(t, os.Mkdir(dir, 0o755))
		}
		write(t, dir, "file", "before")
	}, func(i images) {
		var commands bytes.Buffer
		for dir := ""; len(dir) < 2*(depth-1); dir += "/a" {
			fmt.Fprintf(&commands, "link %s/a/a %s/a/b\n", dir, dir)
		}
		script := filepath.Join(t.TempDir(), "commands")
		require.NoError(t, os.WriteFile(script, commands.Bytes(), 0o600))
		debugfs(t, i.upper, "-w", "-f", script)
	}, func(dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o644))
		for range depth {
			dir = filepath.Join(dir, "a")
		}
		write(t, dir, "file", "AFTER!")
	})
	i.opened(t, func(lower, upper diff.Volume, changed []diff.Range) {
		_, err := diff.List(t.Context(), lower, upper, changed)
		require.ErrorContains(t, err, "more directories")
	})
}
