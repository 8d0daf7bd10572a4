package filesystem_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// device attaches a new file of the given size in bytes, and returns the loop device and the file.
func device(t *testing.T, bytes int64) (dev, file string) {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	file = filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, bytes))
	loop, err := blockdev.LoopAttach(file, blockdev.LoopOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, loop.Close()) })
	return loop.Path, file
}

// mounted calls f with the directory at which the device is mounted.
func mounted(t *testing.T, dev, typ string, flags uintptr, f func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, unix.Mount(dev, dir, typ, flags, ""))
	defer func() { require.NoError(t, unix.Unmount(dir, 0)) }()
	f(dir)
}

func TestNewFilesystemIsEmpty(t *testing.T) {
	for _, typ := range []string{filesystem.Ext4, filesystem.XFS} {
		t.Run(typ, func(t *testing.T) {
			dev, _ := device(t, 400<<20)
			require.NoError(t, filesystem.Make(t.Context(), dev, typ, nil))
			require.NoError(t, filesystem.InitRoot(dev, typ))
			mounted(t, dev, typ, 0, func(dir string) {
				entries, err := os.ReadDir(dir)
				require.NoError(t, err)
				require.Empty(t, entries)
				info, err := os.Stat(dir)
				require.NoError(t, err)
				require.Equal(t, os.ModeDir|0o755, info.Mode())
			})
		})
	}
}

func TestGrow(t *testing.T) {
	for _, typ := range []string{filesystem.Ext4, filesystem.XFS} {
		t.Run(typ, func(t *testing.T) {
			dev, file := device(t, 400<<20)
			require.NoError(t, filesystem.Make(t.Context(), dev, typ, nil))
			before, err := filesystem.Identify(dev)
			require.NoError(t, err)
			require.EqualValues(t, 400<<20, before.Bytes)
			mounted(t, dev, typ, 0, func(dir string) {
				require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o644))
			})

			const size = 2 << 30
			require.NoError(t, os.Truncate(file, size))
			require.NoError(t, blockdev.LoopSetCapacity(dev))
			require.NoError(t, filesystem.Grow(dev, typ, size))
			after, err := filesystem.Identify(dev)
			require.NoError(t, err)
			require.EqualValues(t, size, after.Bytes)
			require.Equal(t, before.UUID, after.UUID)
			require.NoError(t, filesystem.Grow(dev, typ, size), "it already has the size")
			mounted(t, dev, typ, unix.MS_RDONLY, func(dir string) {
				content, err := os.ReadFile(filepath.Join(dir, "file"))
				require.NoError(t, err)
				require.Equal(t, "content", string(content))
			})
		})
	}
}

// A copy of a mounted file system is like the file system after a power cut.
func TestRecover(t *testing.T) {
	for _, typ := range []string{filesystem.Ext4, filesystem.XFS} {
		t.Run(typ, func(t *testing.T) {
			dev, file := device(t, 400<<20)
			require.NoError(t, filesystem.Make(t.Context(), dev, typ, nil))
			copied := file + ".copy"
			mounted(t, dev, typ, 0, func(dir string) {
				f, err := os.Create(filepath.Join(dir, "file"))
				require.NoError(t, err)
				require.NoError(t, f.Sync())
				require.NoError(t, f.Close())
				require.NoError(t, blockdev.Flush(dev))
				content, err := os.ReadFile(file)
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(copied, content, 0o600))
			})
			loop, err := blockdev.LoopAttach(copied, blockdev.LoopOptions{})
			require.NoError(t, err)
			defer func() { require.NoError(t, loop.Close()) }()
			sb, err := filesystem.Identify(loop.Path)
			require.NoError(t, err)
			require.Equal(t, typ == filesystem.Ext4, sb.NeedsRecovery)
			require.NoError(t, filesystem.Recover(loop.Path, typ))
			sb, err = filesystem.Identify(loop.Path)
			require.NoError(t, err)
			require.False(t, sb.NeedsRecovery)
			mounted(t, loop.Path, typ, unix.MS_RDONLY, func(dir string) {
				require.FileExists(t, filepath.Join(dir, "file"))
			})
		})
	}
}

func TestIdentifyNothing(t *testing.T) {
	dev, _ := device(t, 1<<20)
	_, err := filesystem.Identify(dev)
	require.ErrorIs(t, err, filesystem.ErrNotRecognised)
	_, err = filesystem.Identify(dev + "-missing")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func freeBytes(t require.TestingT, dir string) int64 {
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &st))
	return int64(st.Bfree) * st.Bsize
}

// TestTrim: a trim of a mounted file system frees the space of its deleted files in the file under
// the loop device.
func TestTrim(t *testing.T) {
	for _, typ := range []string{filesystem.Ext4, filesystem.XFS} {
		t.Run(typ, func(t *testing.T) {
			const size, deleted, piece = 320 << 20, 16 << 20, 128 << 20
			dev, file := device(t, size)
			allocated := func() int64 {
				var st unix.Stat_t
				require.NoError(t, unix.Stat(file, &st))
				return st.Blocks * 512
			}
			require.NoError(t, filesystem.Make(t.Context(), dev, typ, nil))
			mounted(t, dev, typ, 0, func(dir string) {
				big := filepath.Join(dir, "big")
				require.NoError(t, os.WriteFile(big, bytes.Repeat([]byte{'x'}, deleted), 0o644))
				require.NoError(t, os.WriteFile(filepath.Join(dir, "kept"), []byte("kept"), 0o644))
				unix.Sync()
				before, free := allocated(), freeBytes(t, dir)
				require.NoError(t, os.Remove(big))
				// xfs frees the blocks of a deleted file in the background.
				require.EventuallyWithT(t, func(c *assert.CollectT) {
					require.GreaterOrEqual(c, freeBytes(c, dir), free+deleted)
				}, time.Minute, time.Millisecond)
				unix.Sync()
				require.Greater(t, allocated(), before-deleted/4, "deletion alone frees nothing")
				var trimmed uint64
				for offset := uint64(0); offset < size; offset += piece {
					n, err := filesystem.Trim(dev, typ, offset, min(piece, size-offset))
					require.NoError(t, err)
					trimmed += n
				}
				require.GreaterOrEqual(t, trimmed, uint64(deleted))
				require.Less(t, allocated(), before-deleted*3/4)
				content, err := os.ReadFile(filepath.Join(dir, "kept"))
				require.NoError(t, err)
				require.Equal(t, "kept", string(content))
				_, err = filesystem.Trim(dev, typ, 1<<30, 1<<20)
				require.ErrorIs(t, err, unix.EINVAL, "beyond the end")
			})
			mounted(t, dev, typ, unix.MS_RDONLY, func(string) {
				_, err := filesystem.Trim(dev, typ, 0, 128<<20)
				require.ErrorIs(t, err, unix.EBUSY)
			})
		})
	}
	t.Run("ext4 without its journal", func(t *testing.T) {
		dev, _ := device(t, 64<<20)
		require.NoError(t, filesystem.Make(t.Context(), dev, filesystem.Ext4, nil))
		dir := t.TempDir()
		require.NoError(t, unix.Mount(dev, dir, filesystem.Ext4, 0, "noload"))
		defer func() { require.NoError(t, unix.Unmount(dir, 0)) }()
		_, err := filesystem.Trim(dev, filesystem.Ext4, 0, 64<<20)
		require.ErrorIs(t, err, unix.EROFS)
	})
}

// TestXFSLogClean compares XFSLogClean with the kernel, for an unmounted xfs and for copies of it
// while it is mounted, with its log in many positions.
func TestXFSLogClean(t *testing.T) {
	dmtest.RequireThorough(t)
	const rounds, files = 60, 5000 // some ten times around the log
	dev, file := device(t, 400<<20)
	require.NoError(t, filesystem.Make(t.Context(), dev, filesystem.XFS, nil))
	copied := file + ".copy"
	compare := func(path string, want bool) {
		t.Helper()
		loop, err := blockdev.LoopAttach(path, blockdev.LoopOptions{ReadOnly: true})
		require.NoError(t, err)
		defer func() { require.NoError(t, loop.Close()) }()
		f, err := os.Open(loop.Path)
		require.NoError(t, err)
		defer f.Close()
		clean, err := filesystem.XFSLogClean(f)
		require.NoError(t, err)
		require.Equal(t, want, clean)
		if err := filesystem.Verify(loop.Path, filesystem.XFS); want {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, filesystem.ErrNeedsRecovery)
		}
	}
	for round := range rounds {
		mounted(t, dev, filesystem.XFS, 0, func(dir string) {
			for i := range files * round / rounds {
				require.NoError(t, os.WriteFile(filepath.Join(dir, "file"+strconv.Itoa(i)), nil, 0o644))
			}
			require.NoError(t, os.RemoveAll(filepath.Join(dir, "file0")))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "last"), nil, 0o644))
			fd, err := os.Open(dir)
			require.NoError(t, err)
			require.NoError(t, unix.Syncfs(int(fd.Fd())))
			require.NoError(t, fd.Close())
			require.NoError(t, blockdev.Flush(dev))
			content, err := os.ReadFile(file)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(copied, content, 0o600))
		})
		require.NoError(t, blockdev.Flush(dev))
		compare(copied, false)
		compare(file, true)
	}
}
