package diff_test

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/diff"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/dmpool"
)

// TestReadsInProportion counts the sectors that are read for a layer. Beyond the cost of an empty
// layer, they are the changed blocks of both sides, and the files in the layer. If a file changed
// in an unchanged directory, the names of all files are read, too: an inode does not record its
// directory.
func TestReadsInProportion(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	s := newStand(t)
	l, files := ordinary(), 2000
	l.bytes = 512 * mib
	if dmtest.Thorough() {
		l.bytes, files = 4096*mib, 50_000
	}
	lower := side{s.snapshot(s.empty(l)), l.bytes}
	s.with(lower.id, l.bytes, false, func(dev string) {
		s.mounted(dev, l.filesystem, 0, "", func(dir string) { tree(t, dir, files) })
	})
	names := s.sectorsOfNames(l, lower)
	write := func(path, content string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			t.Helper()
			f, err := os.OpenFile(filepath.Join(dir, path), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
			require.NoError(t, err)
			_, err = f.WriteString(content)
			require.NoError(t, err)
			require.NoError(t, f.Close())
		}
	}
	const sectorsPerBlock, slack = 3 * dmpool.BlockSectors, 256
	nothing, theirs := uint64(0), uint64(0)
	for _, change := range []struct {
		name string
		make func(t *testing.T, dir string)
		// names is true if a file changed in an unchanged directory.
		names bool
	}{
		{"nothing", func(*testing.T, string) {}, false},
		{"a new file of two bytes", write("dir-0007/new", "ab"), false},
		{"a new file of 8 MiB", write("dir-0003/new", strings.Repeat("new", 8*mib/3)), false},
		{"two bytes more in a file", write("dir-0011/file-01100", "ab"), true},
		{"100 files", func(t *testing.T, dir string) {
			t.Helper()
			for i := range 100 {
				write(filepath.Join(fmt.Sprintf("dir-%04d", i%(files/100)), "new"), strings.Repeat("new", 5000))(t, dir)
			}
		}, false},
	} {
		upper := side{s.snapshot(lower.id), l.bytes}
		s.with(upper.id, l.bytes, false, func(dev string) {
			s.mounted(dev, l.filesystem, 0, "", func(dir string) { change.make(t, dir) })
		})
		changed := s.changed(lower.id, upper.id)
		blocks := uint64(0)
		for _, r := range changed {
			blocks += r.Length / (dmpool.BlockSectors * 512)
		}
		var listing diff.Listing
		ours := s.sectors(l, lower, upper, func(a, b diff.Volume) {
			var err error
			listing, err = diff.List(t.Context(), a, b, changed)
			require.NoError(t, err)
			require.NoError(t, diff.WriteTar(t.Context(), io.Discard, b, listing.Changes))
		})
		if theirs == 0 || dmtest.Thorough() { // the walking differ reads all files for each change
			theirs = s.sectors(l, lower, upper, func(a, b diff.Volume) {
				require.NoError(t, archive.WriteDiff(t.Context(), io.Discard, a.Root, b.Root))
			})
		}
		t.Logf("%s: %d blocks of 64 KiB changed; %s: %d sectors (all names: %d); walking differ: %d", change.name, blocks,
			listing.Level, ours, names, theirs)
		if change.name == "nothing" {
			nothing = ours
		}
		most := nothing + slack + sectorsPerBlock*blocks
		if change.names {
			most += names
		}
		require.LessOrEqual(t, ours, most)
		require.Less(t, 20*ours, theirs+20*sectorsPerBlock*blocks, "without the reads of the change itself")
		s.delete(upper.id)
	}
	s.delete(lower.id)
}

// tree creates files like those of an image: 20 KiB on average, 100 in a directory.
func tree(t *testing.T, root string, files int) {
	t.Helper()
	content := strings.Repeat("0123456789abcdef", 40<<10/16)
	whole := time.Unix(1_600_000_000, 0)
	for i := range files {
		dir := filepath.Join(root, fmt.Sprintf("dir-%04d", i/100))
		if i%100 == 0 {
			require.NoError(t, os.Mkdir(dir, 0o755))
		}
		path := filepath.Join(dir, fmt.Sprintf("file-%05d", i))
		require.NoError(t, os.WriteFile(path, []byte(content[:(i*977)%len(content)]), 0o644))
		require.NoError(t, os.Chtimes(path, whole, whole))
	}
}

// sectors returns the number of sectors of 512 bytes that f reads of two volumes, without those
// that their mounts read.
func (s *stand) sectors(l layout, lower, upper side, f func(a, b diff.Volume)) (n uint64) {
	s.t.Helper()
	s.opened(l, lower, func(a diff.Volume) {
		s.opened(l, upper, func(b diff.Volume) {
			before := s.sectorsRead(lower.id) + s.sectorsRead(upper.id)
			f(a, b)
			n = s.sectorsRead(lower.id) + s.sectorsRead(upper.id) - before
		})
	})
	return n
}

// sectorsOfNames returns the number of sectors with the names of all files.
func (s *stand) sectorsOfNames(l layout, of side) (n uint64) {
	s.t.Helper()
	s.opened(l, of, func(v diff.Volume) {
		before := s.sectorsRead(of.id)
		require.NoError(s.t, filepath.WalkDir(v.Root, func(_ string, _ fs.DirEntry, err error) error { return err }))
		n = s.sectorsRead(of.id) - before
	})
	return n
}

// sectorsRead returns the number of sectors read of an active volume
// (Documentation/block/stat.rst).
func (s *stand) sectorsRead(id thin.ID) (sectors uint64) {
	s.t.Helper()
	var st unix.Stat_t
	require.NoError(s.t, unix.Stat(devmapper.NodePath(s.name(id)), &st))
	stat, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	require.NoError(s.t, err)
	var reads, merged uint64
	_, err = fmt.Sscan(string(stat), &reads, &merged, &sectors)
	require.NoError(s.t, err)
	return sectors
}
