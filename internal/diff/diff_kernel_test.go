package diff_test

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/continuity/fs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/internal/diff"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestWalkReadsOnlyChangedBlocks: of files whose times have no nanoseconds, a walk reads only those
// on other blocks, or with changed blocks.
func TestWalkReadsOnlyChangedBlocks(t *testing.T) {
	dmtest.RequireKernel(t)
	for _, typ := range []string{filesystem.Ext4, filesystem.XFS} {
		t.Run(typ, func(t *testing.T) {
			dmtest.NoLeaks(t)
			lower, upper := filepath.Join(t.TempDir(), "lower"), filepath.Join(t.TempDir(), "upper")
			const bytes = 400 << 20
			require.NoError(t, os.WriteFile(lower, nil, 0o600))
			require.NoError(t, os.Truncate(lower, bytes))
			onLoop(t, lower, func(dev string) {
				require.NoError(t, filesystem.Make(t.Context(), dev, typ, nil))
				mounted(t, dev, typ, 0, func(dir string) {
					populate(t, dir)
					write(t, dir, "large", strings.Repeat("0123456789abcdef", 4<<20/16))
					write(t, dir, "patched", strings.Repeat("0123456789abcdef", 4<<20/16))
					write(t, dir, "moved", strings.Repeat("m", 1<<20))
					sparse(t, filepath.Join(dir, "sparse"))
				})
			})
			copySparse(t, lower, upper)
			onLoop(t, upper, func(dev string) {
				mounted(t, dev, typ, 0, func(dir string) {
					change(t, dir)
					patch(t, filepath.Join(dir, "patched"), 3<<20)
					write(t, dir, "moved.new", strings.Repeat("m", 1<<20)) // the same content on other blocks
					require.NoError(t, os.Rename(filepath.Join(dir, "moved.new"), filepath.Join(dir, "moved")))
				})
			})
			changed := changedRanges(t, lower, upper)
			onLoop(t, lower, func(lowerDev string) {
				onLoop(t, upper, func(upperDev string) {
					mounted(t, lowerDev, typ, unix.MS_RDONLY, func(lowerDir string) {
						mounted(t, upperDev, typ, unix.MS_RDONLY, func(upperDir string) {
							a, b := volume(t, lowerDev, lowerDir, typ), volume(t, upperDev, upperDir, typ)
							listing := requireAsWalkingDiffer(t, a, b, changed)
							require.Contains(t, listing.Changes, diff.Change{Kind: fs.ChangeKindModify, Path: "/patched"})
							require.Contains(t, listing.Changes, diff.Change{Kind: fs.ChangeKindModify, Path: "/rewritten"})
							for _, path := range []string{"/large", "/moved", "/sparse", "/usr/lib/file-1"} {
								require.NotContains(t, listing.Changes, diff.Change{Kind: fs.ChangeKindModify, Path: path})
							}
							// The moved file on both sides, the changed block of the patched file,
							// and small files next to changed ones.
							require.Less(t, listing.Read, uint64(4<<20))
							require.Less(t, uint64(2<<20), listing.Read)
						})
					})
				})
			})
		})
	}
}

// sparse creates a file with a hole, an allocated but unwritten part, and a written part.
func sparse(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, unix.Fallocate(int(f.Fd()), 0, 8<<20, 4<<20))
	_, err = f.WriteAt([]byte("content"), 16<<20)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, os.Chtimes(path, whole(), whole()))
}

// patch changes one byte of a file, without its size and time.
func patch(t *testing.T, path string, offset int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("!"), offset)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, os.Chtimes(path, whole(), whole()))
}

// onLoop calls f with a loop device of a file.
func onLoop(t *testing.T, file string, f func(dev string)) {
	t.Helper()
	loop, err := blockdev.LoopAttach(file, blockdev.LoopOptions{})
	require.NoError(t, err)
	defer func() { require.NoError(t, loop.Close()) }()
	f(loop.Path)
}

// mounted mounts a device, and calls f with the directory.
func mounted(t *testing.T, dev, typ string, flags uintptr, f func(dir string)) {
	t.Helper()
	dir, options := t.TempDir(), ""
	if typ == filesystem.XFS {
		options = "nouuid"
	}
	require.NoError(t, unix.Mount(dev, dir, typ, flags, options))
	defer func() { require.NoError(t, unix.Unmount(dir, 0)) }()
	f(dir)
}

// volume returns the volume that is mounted at a directory.
func volume(t *testing.T, dev, dir, typ string) diff.Volume {
	t.Helper()
	f, err := os.Open(dev)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	size, err := f.Seek(0, io.SeekEnd)
	require.NoError(t, err)
	return diff.Volume{Root: dir, Device: f, Bytes: uint64(size), Filesystem: typ}
}

// changedRanges returns the blocks of 64 KiB in which two images differ.
func changedRanges(t *testing.T, lower, upper string) (changed []diff.Range) {
	t.Helper()
	const block = 64 << 10
	var files [2]*os.File
	written := map[int64]bool{}
	for i, image := range []string{lower, upper} {
		f, err := os.Open(image)
		require.NoError(t, err)
		defer f.Close()
		files[i] = f
		eachData(t, f, func(start, end int64) {
			for n := start / block; n*block < end; n++ {
				written[n] = true
			}
		})
	}
	var buffers [2][block]byte
	for _, n := range slices.Sorted(maps.Keys(written)) {
		for i, f := range files {
			_, err := f.ReadAt(buffers[i][:], n*block)
			require.NoError(t, err)
		}
		if !bytes.Equal(buffers[0][:], buffers[1][:]) {
			changed = append(changed, diff.Range{Offset: uint64(n * block), Length: block, Lower: true, Upper: true})
		}
	}
	return changed
}

// eachData calls f with each part of a file that is not a hole.
func eachData(t *testing.T, file *os.File, f func(start, end int64)) {
	t.Helper()
	for end := int64(0); ; {
		start, err := file.Seek(end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return
		}
		require.NoError(t, err)
		end, err = file.Seek(start, unix.SEEK_HOLE)
		require.NoError(t, err)
		f(start, end)
	}
}

// copySparse copies a file and keeps its holes.
func copySparse(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	require.NoError(t, err)
	defer in.Close()
	info, err := in.Stat()
	require.NoError(t, err)
	out, err := os.Create(to)
	require.NoError(t, err)
	defer out.Close()
	require.NoError(t, out.Truncate(info.Size()))
	eachData(t, in, func(start, end int64) {
		_, err := io.Copy(io.NewOffsetWriter(out, start), io.NewSectionReader(in, start, end-start))
		require.NoError(t, err)
	})
}
