package diff_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/internal/diff"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestLargeDirectory changes a large directory, whose index has several levels on small blocks.
func TestLargeDirectory(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	s := newStand(t)
	// Fewer entries with long names need as many blocks as many with short ones.
	entries, long := 2400, strings.Repeat("-", 80)
	if dmtest.Thorough() {
		entries, long = 100_000, ""
	}
	for _, l := range []layout{
		{name: "ext4", filesystem: filesystem.Ext4, mkfs: []string{"-b", "1024"}, bytes: 512 * mib},
		{name: "xfs", filesystem: filesystem.XFS, bytes: 400 * mib},
	} {
		lower := side{s.snapshot(s.empty(l)), l.bytes}
		name := func(dir string, i int) string {
			return filepath.Join(dir, "large", fmt.Sprintf("entry-%06d%s", i, long))
		}
		s.with(lower.id, l.bytes, false, func(dev string) {
			s.mounted(dev, l.filesystem, 0, "", func(dir string) {
				require.NoError(t, os.Mkdir(filepath.Join(dir, "large"), 0o755))
				for i := range entries {
					require.NoError(t, unix.Mknod(name(dir, i), unix.S_IFREG|0o644, 0))
				}
			})
		})
		upper := side{s.snapshot(lower.id), l.bytes}
		s.with(upper.id, l.bytes, false, func(dev string) {
			s.mounted(dev, l.filesystem, 0, "", func(dir string) {
				for i := range 300 {
					require.NoError(t, os.Remove(name(dir, i*7)))
					require.NoError(t, unix.Mknod(name(dir, entries+i), unix.S_IFREG|0o644, 0))
				}
				require.NoError(t, os.Rename(name(dir, 1), name(dir, 0)))
				require.NoError(t, os.Link(name(dir, 2), name(dir, 7)))
				require.NoError(t, os.Chmod(name(dir, entries-1), 0o600))
			})
		})
		v := s.compare(l, lower, upper)
		require.False(t, v.differs, "%s: %s", l.name, v.report)
		s.delete(upper.id, lower.id)
	}
}

// TestSparseFile: only the written parts of a file of 4 GiB are read.
func TestSparseFile(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	s := newStand(t)
	whole := time.Unix(1_600_000_000, 0)
	write := func(dir string, at int64) {
		f, err := os.OpenFile(filepath.Join(dir, "sparse"), os.O_CREATE|os.O_WRONLY, 0o644)
		require.NoError(t, err)
		require.NoError(t, f.Truncate(4096*mib+123))
		_, err = f.WriteAt([]byte("data"), at)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.NoError(t, os.Chtimes(f.Name(), whole, whole))
	}
	for _, l := range []layout{ordinary(), {name: "xfs", filesystem: filesystem.XFS, bytes: 400 * mib}} {
		lower := s.snapshot(s.empty(l))
		s.with(lower, l.bytes, false, func(dev string) {
			s.mounted(dev, l.filesystem, 0, "", func(dir string) {
				write(dir, 3000*mib)
				write(dir, 100)
			})
		})
		for at, changes := range map[int64]int{3000 * mib: 0, 3000*mib + 1: 1} {
			upper := s.snapshot(lower)
			s.with(upper, l.bytes, false, func(dev string) {
				s.mounted(dev, l.filesystem, 0, "", func(dir string) { write(dir, at) })
			})
			changed := s.changed(lower, upper)
			s.opened(l, side{lower, l.bytes}, func(a diff.Volume) {
				s.opened(l, side{upper, l.bytes}, func(b diff.Volume) {
					listing, err := diff.List(t.Context(), a, b, changed)
					require.NoError(t, err)
					require.Len(t, listing.Changes, changes, l.name)
					require.LessOrEqual(t, listing.Read, uint64(mib), "of the file on both sides")
					if dmtest.Thorough() {
						ours, theirs := sha256.New(), sha256.New()
						require.NoError(t, diff.WriteTar(t.Context(), ours, b, listing.Changes))
						require.NoError(t, archive.WriteDiff(t.Context(), theirs, a.Root, b.Root))
						require.Equal(t, theirs.Sum(nil), ours.Sum(nil))
					}
				})
			})
			s.delete(upper)
		}
		s.delete(lower)
	}
}
