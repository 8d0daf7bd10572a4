package diff_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/continuity/fs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/ext4"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/internal/diff"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// images are two files with an ext4 each. The upper one began as a copy of the lower one.
type images struct{ lower, upper string }

// newImages creates both images. fill changes the lower one before the copy, change the upper one;
// nil changes nothing.
func newImages(t *testing.T, mkfs []string, fill, change func(dir string)) images {
	t.Helper()
	dir := t.TempDir()
	i := images{lower: filepath.Join(dir, "lower"), upper: filepath.Join(dir, "upper")}
	require.NoError(t, os.WriteFile(i.lower, nil, 0o600))
	require.NoError(t, os.Truncate(i.lower, 64<<20))
	onLoop(t, i.lower, func(dev string) {
		require.NoError(t, filesystem.Make(t.Context(), dev, filesystem.Ext4, append([]string{"-b", "4096"}, mkfs...)))
		mounted(t, dev, filesystem.Ext4, 0, fill)
	})
	copySparse(t, i.lower, i.upper)
	if change != nil {
		i.change(t, change)
	}
	return i
}

// again returns copies of both images.
func (i images) again(t *testing.T) images {
	t.Helper()
	dir := t.TempDir()
	copies := images{lower: filepath.Join(dir, "lower"), upper: filepath.Join(dir, "upper")}
	copySparse(t, i.lower, copies.lower)
	copySparse(t, i.upper, copies.upper)
	return copies
}

func (i images) change(t *testing.T, change func(dir string)) {
	t.Helper()
	onLoop(t, i.upper, func(dev string) { mounted(t, dev, filesystem.Ext4, 0, change) })
}

// opened calls f with both images, mounted read-only, and with their differences.
func (i images) opened(t *testing.T, f func(lower, upper diff.Volume, changed []diff.Range)) {
	t.Helper()
	changed := changedRanges(t, i.lower, i.upper)
	onLoop(t, i.lower, func(lowerDev string) {
		onLoop(t, i.upper, func(upperDev string) {
			mounted(t, lowerDev, filesystem.Ext4, unix.MS_RDONLY, func(lowerDir string) {
				mounted(t, upperDev, filesystem.Ext4, unix.MS_RDONLY, func(upperDir string) {
					lower, upper := volume(t, lowerDev, lowerDir, filesystem.Ext4), volume(t, upperDev, upperDir, filesystem.Ext4)
					f(lower, upper, changed)
				})
			})
		})
	})
}

// list compares the layer with that of the walking differ.
func (i images) list(t *testing.T) (listing diff.Listing) {
	t.Helper()
	i.opened(t, func(lower, upper diff.Volume, changed []diff.Range) {
		listing = requireAsWalkingDiffer(t, lower, upper, changed)
	})
	return listing
}

// TestWritesBehindTheFileSystem changes blocks without the records of their inodes. List finds the
// changes. A listing without the accounting for blocks misses them, which proves that the
// comparison with the walking differ detects it.
func TestWritesBehindTheFileSystem(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	plain := []string{"-O", "^metadata_csum"} // with a checksum, the kernel would notice the change
	fill := func(dir string) {
		write(t, dir, "deep/below/data", strings.Repeat("-", 5000)+"the-data-itself"+strings.Repeat("-", 5000))
		write(t, dir, "names/the-first-name", "x")
		write(t, dir, "names/another", "y")
		// The capability does not fit into the inode's record.
		path := filepath.Join(dir, "names/another")
		require.NoError(t, unix.Setxattr(path, "user.fill", bytes.Repeat([]byte("f"), 60), 0))
		require.NoError(t, unix.Setxattr(path, "security.capability", rights(1), 0))
		write(t, dir, "fragmented", "")
		fragment(t, filepath.Join(dir, "fragmented"), 400)
	}
	made := newImages(t, plain, fill, func(dir string) { write(t, dir, "beside", "it") })
	for _, c := range []struct {
		name, path string
		plant      func(t *testing.T, i images)
		change     diff.Change
	}{
		{"data", "/deep/below/data", func(t *testing.T, i images) { i.replace(t, "/deep/below/data", "the-data-itself", "THE-DATA-ITSELF") },
			diff.Change{Kind: fs.ChangeKindModify, Path: "/deep/below/data"}},
		{"directory", "/names", func(t *testing.T, i images) { i.replace(t, "/names", "the-first-name", "THE-FIRST-NAME") },
			diff.Change{Kind: fs.ChangeKindAdd, Path: "/names/THE-FIRST-NAME"}},
		{"attributes", "/names/another", func(t *testing.T, i images) {
			i.replace(t, "/names/another", string(rights(1)), string(rights(2)))
		}, diff.Change{Kind: fs.ChangeKindModify, Path: "/names/another"}},
		{"extents", "/fragmented", func(t *testing.T, i images) { i.swapExtents(t, "/fragmented") },
			diff.Change{Kind: fs.ChangeKindModify, Path: "/fragmented"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := made.again(t)
			c.plant(t, i)
			i.opened(t, func(lower, upper diff.Volume, changed []diff.Range) {
				listing := requireAsWalkingDiffer(t, lower, upper, changed)
				require.Equal(t, diff.Inodes, listing.Level, listing.Fallback)
				require.Contains(t, listing.Changes, c.change)
				require.Contains(t, listing.Changes, diff.Change{Kind: fs.ChangeKindAdd, Path: "/beside"})
				unproved, err := diff.ListUnproved(t.Context(), lower, upper, changed)
				require.NoError(t, err)
				require.NotContains(t, unproved.Changes, c.change)
				require.ErrorIs(t, sameLayer(t.Context(), lower, upper, unproved), errNotSame)
			})
		})
	}
}

// sameLayer returns errNotSame if the layer differs from that of the walking differ.
func sameLayer(ctx context.Context, lower, upper diff.Volume, listing diff.Listing) error {
	var theirs bytes.Buffer
	if err := archive.WriteDiff(ctx, &theirs, lower.Root, upper.Root); err != nil {
		return err
	}
	same := matching{rest: theirs.Bytes()}
	if err := diff.WriteTar(ctx, &same, upper, listing.Changes); err != nil {
		return err
	}
	if len(same.rest) > 0 {
		return errNotSame
	}
	return nil
}

// rights is a value of security.capability (struct vfs_cap_data, version 2).
func rights(permitted byte) []byte {
	return []byte{0, 0, 0, 2, permitted, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
}

// fragment creates a file in many pieces, so that its extents need separate blocks.
func fragment(t *testing.T, path string, pieces int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	for i := range pieces {
		_, err := fmt.Fprintf(f, "piece %d", i)
		require.NoError(t, err)
		_, err = f.Seek((i+1)*8192, 0)
		require.NoError(t, err)
	}
	require.NoError(t, f.Close())
	require.NoError(t, os.Chtimes(path, whole(), whole()))
}

// blocksOf returns the blocks of an inode of the upper image.
func (i images) blocksOf(t *testing.T, path string) (blocks []ext4.Extent) {
	t.Helper()
	f, err := os.Open(i.upper)
	require.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	require.NoError(t, err)
	system, err := ext4.Open(f, uint64(info.Size()))
	require.NoError(t, err)
	r, err := system.Record(uint32(ask(t, i.upper, "stat "+path, `Inode: (\d+)`)))
	require.NoError(t, err)
	require.NoError(t, system.Extents(r, func(e ext4.Extent) error {
		blocks = append(blocks, e)
		return nil
	}))
	if block := r.AttributeBlock(); block != 0 {
		blocks = append(blocks, ext4.Extent{Span: ext4.Span{Start: block, Length: 1}})
	}
	return blocks
}

// edit changes blocks of an inode of the upper image. f returns whether it changed a block.
func (i images) edit(t *testing.T, path string, f func(block []byte, node bool) bool) {
	t.Helper()
	file, err := os.OpenFile(i.upper, os.O_RDWR, 0)
	require.NoError(t, err)
	edited := 0
	for _, e := range i.blocksOf(t, path) {
		for n := e.Start; n < e.End(); n++ {
			block := make([]byte, 4096)
			_, err := file.ReadAt(block, int64(n)*4096)
			require.NoError(t, err)
			if f(block, e.Node) {
				_, err := file.WriteAt(block, int64(n)*4096)
				require.NoError(t, err)
				edited++
			}
		}
	}
	require.NoError(t, file.Close())
	require.Equal(t, 1, edited)
}

// replace changes bytes in a block of an inode of the upper image.
func (i images) replace(t *testing.T, path, from, to string) {
	t.Helper()
	i.edit(t, path, func(block []byte, _ bool) bool {
		at := bytes.Index(block, []byte(from))
		if at < 0 {
			return false
		}
		copy(block[at:], to)
		return true
	})
}

// swapExtents swaps the physical positions of the first two pieces of a file.
func (i images) swapExtents(t *testing.T, path string) {
	t.Helper()
	first := true
	i.edit(t, path, func(block []byte, node bool) bool {
		if !node || !first {
			return false
		}
		first = false
		a, b := block[12+4:][:8], block[24+4:][:8] // ee_len, ee_start
		saved := bytes.Clone(a)
		copy(a, b)
		copy(b, saved)
		return true
	})
}

// TestSharedAttributes: files with equal attributes share a block, whose reference count changes
// with each of them.
func TestSharedAttributes(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	set := func(dir, name string, values ...byte) {
		for _, value := range values {
			require.NoError(t, unix.Setxattr(filepath.Join(dir, name), "user."+string(value), bytes.Repeat([]byte{value}, 300), 0))
		}
	}
	i := newImages(t, nil, func(dir string) {
		for n := range 10 {
			name := fmt.Sprintf("shared-%d", n)
			write(t, dir, name, name)
			set(dir, name, 'a', 'b')
		}
	}, func(dir string) {
		require.NoError(t, os.Remove(filepath.Join(dir, "shared-0")))
		set(dir, "shared-1", 'c')
		write(t, dir, "new", "new")
		set(dir, "new", 'a', 'b')
		require.NoError(t, os.Chmod(filepath.Join(dir, "shared-2"), 0o600))
	})
	listing := i.list(t)
	require.Equal(t, diff.Inodes, listing.Level, listing.Fallback)
	require.LessOrEqual(t, listing.Inodes, uint64(8), "the other files are not searched")
	require.Equal(t, []diff.Change{
		{Kind: fs.ChangeKindAdd, Path: "/new"}, {Kind: fs.ChangeKindDelete, Path: "/shared-0"},
		{Kind: fs.ChangeKindModify, Path: "/shared-2"},
	}, listing.Changes)
}

// TestNamesOfAChangedInode: a changed file in an unchanged directory is found under each of its
// names.
func TestNamesOfAChangedInode(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	fill := func(dir string) {
		for n := range 200 {
			write(t, dir, fmt.Sprintf("usr/%d/share/%d", n%20, n), "content")
		}
		write(t, dir, "usr/lib/log", "content")
		require.NoError(t, os.Link(filepath.Join(dir, "usr/lib/log"), filepath.Join(dir, "usr/7/share/log")))
		require.NoError(t, os.Link(filepath.Join(dir, "usr/3/share/3"), filepath.Join(dir, "usr/9/share/third")))
	}
	made := newImages(t, nil, fill, nil)
	changed := func(t *testing.T, change func(dir string)) diff.Listing {
		t.Helper()
		i := made.again(t)
		i.change(t, change)
		return i.list(t)
	}
	added := func(paths ...string) (changes []diff.Change) {
		for _, path := range paths {
			changes = append(changes, diff.Change{Kind: fs.ChangeKindAdd, Path: path})
		}
		return changes
	}
	t.Run("a new file lists its own directory", func(t *testing.T) {
		listing := changed(t, func(dir string) { write(t, dir, "usr/5/share/new", "x") })
		require.Equal(t, diff.Inodes, listing.Level, listing.Fallback)
		require.Equal(t, added("/usr/5/share/new"), listing.Changes)
		require.Less(t, listing.Paths, uint64(15))
	})
	t.Run("a file that grew", func(t *testing.T) {
		listing := changed(t, func(dir string) { write(t, dir, "usr/lib/log", "content and more") })
		require.Equal(t, diff.Inodes, listing.Level, listing.Fallback)
		require.Equal(t, []diff.Change{
			{Kind: fs.ChangeKindModify, Path: "/usr/7/share/log"}, {Kind: fs.ChangeKindModify, Path: "/usr/lib/log"},
		}, listing.Changes)
	})
	t.Run("a file that grew, in a tree that was made in its order", func(t *testing.T) {
		fill := func(dir string) {
			for n := range 100 {
				write(t, dir, fmt.Sprintf("usr/%d/a-file", n), "content")
				write(t, dir, fmt.Sprintf("usr/%d/directory/file", n), "content")
				write(t, dir, fmt.Sprintf("usr/%d/of-the-directory-above", n), "content")
			}
		}
		listing := newImages(t, nil, fill, func(dir string) { write(t, dir, "usr/70/of-the-directory-above", "more of it") }).list(t)
		require.Equal(t, diff.Inodes, listing.Level, listing.Fallback)
		require.Equal(t, []diff.Change{{Kind: fs.ChangeKindModify, Path: "/usr/70/of-the-directory-above"}}, listing.Changes)
		require.Less(t, listing.Paths, uint64(20), "most of the 200 directories are not listed")
	})
	t.Run("a renamed directory with a file that has another name elsewhere", func(t *testing.T) {
		listing := changed(t, func(dir string) {
			require.NoError(t, os.Rename(filepath.Join(dir, "usr/3/share"), filepath.Join(dir, "usr/3/moved")))
		})
		require.Equal(t, diff.Inodes, listing.Level, listing.Fallback)
		require.Contains(t, listing.Changes, diff.Change{Kind: fs.ChangeKindUnmodified, Path: "/usr/9/share/third"})
	})
}

// TestFallsBackToAWalk: a comparison that cannot be proved complete falls back to a walk, with the
// reason.
func TestFallsBackToAWalk(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	fill := func(dir string) { write(t, dir, "file", "content") }
	change := func(dir string) { write(t, dir, "file", "CONTENT") }
	for why, mkfs := range map[string][]string{
		"unsupported operation":            {"-O", "bigalloc"},
		"an inode without extents":         {"-O", "^extent,^64bit"},
		"state 0x0":                        {"-O", "^has_journal"},
		"belongs to no inode":              nil,
		"of different file systems":        nil,
		"is not the root of a file system": nil,
	} {
		t.Run(why, func(t *testing.T) {
			i := newImages(t, mkfs, fill, change)
			switch why {
			case "of different file systems":
				i.lower = newImages(t, mkfs, fill, nil).lower
			case "state 0x0":
				debugfs(t, i.upper, "-w", "-R", "set_super_value state 0")
			case "belongs to no inode":
				debugfs(t, i.upper, "-w", "-R", "setb 9000")
				f, err := os.OpenFile(i.upper, os.O_WRONLY, 0)
				require.NoError(t, err)
				_, err = f.WriteAt([]byte("lost"), 9000*4096)
				require.NoError(t, err)
				require.NoError(t, f.Close())
			}
			var listing diff.Listing
			i.opened(t, func(lower, upper diff.Volume, changed []diff.Range) {
				if why == "is not the root of a file system" {
					upper.Root, lower.Root = upper.Root+"/lost+found", lower.Root+"/lost+found"
				}
				listing = requireAsWalkingDiffer(t, lower, upper, changed)
			})
			require.Equal(t, diff.Walk, listing.Level)
			require.Contains(t, listing.Fallback, why)
		})
	}
}
