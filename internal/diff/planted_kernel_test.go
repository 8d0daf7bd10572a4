package diff_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/continuity/fs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/diff"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestPlantedChanges: a write to the device behind the file system, as by a virtual machine,
// changes neither an inode nor a time. It is found like any other change.
func TestPlantedChanges(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	s := newStand(t)
	plain := layout{name: "plain", filesystem: "ext4", mkfs: []string{"-b", "4096", "-O", "^metadata_csum"}, bytes: 64 * mib}
	for name, planted := range map[string]struct {
		layout layout
		plant  func(t *testing.T, dev string)
		want   []diff.Change
	}{
		"a block of data": {
			layout: ordinary(),
			plant: func(t *testing.T, dev string) {
				poke(t, dev, ask(t, dev, "bmap /dir/file 3", `^(\d+)`), []byte("planted"))
			},
			want: []diff.Change{{Kind: fs.ChangeKindModify, Path: "/dir/file"}},
		},
		"a block of a large file": {
			layout: ordinary(),
			plant: func(t *testing.T, dev string) {
				poke(t, dev, ask(t, dev, "bmap /large 254", `^(\d+)`), []byte("planted"))
			},
			want: []diff.Change{{Kind: fs.ChangeKindModify, Path: "/large"}},
		},
		"a block of a directory": {
			layout: ordinary(),
			plant: func(t *testing.T, dev string) {
				debugfs(t, dev, "-w", "-R", "unlink /dir/file")
				debugfs(t, dev, "-w", "-R", "link /dir/other /dir/planted")
			},
			want: []diff.Change{{Kind: fs.ChangeKindDelete, Path: "/dir/file"}, {Kind: fs.ChangeKindAdd, Path: "/dir/planted"}},
		},
		"a block of attributes": {
			layout: plain,
			plant: func(t *testing.T, dev string) {
				block := ask(t, dev, "stat /dir/capable", `File ACL: (\d+)`)
				require.NotZero(t, block, "the attributes are in the inode")
				content := make([]byte, 4096)
				f, err := os.Open(dev)
				require.NoError(t, err)
				_, err = f.ReadAt(content, block*4096)
				require.NoError(t, err)
				require.NoError(t, f.Close())
				at := bytes.Index(content, capability()[4:])
				require.Positive(t, at)
				poke(t, dev, block, append(content[:at:at], 0xff))
			},
			want: []diff.Change{{Kind: fs.ChangeKindModify, Path: "/dir/capable"}},
		},
		"an inode": {
			layout: ordinary(),
			plant:  func(t *testing.T, dev string) { debugfs(t, dev, "-w", "-R", "set_inode_field /dir/file mode 0100600") },
			want:   []diff.Change{{Kind: fs.ChangeKindModify, Path: "/dir/file"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			l := planted.layout
			lower := s.snapshot(s.empty(l))
			s.with(lower, l.bytes, false, func(dev string) {
				s.mounted(dev, l.filesystem, 0, "", func(dir string) { plantable(t, dir) })
			})
			upper := s.snapshot(lower)
			s.with(upper, l.bytes, false, func(dev string) { planted.plant(t, dev) })
			v := s.compare(l, side{lower, l.bytes}, side{upper, l.bytes})
			require.False(t, v.differs, v.report)
			require.Equal(t, planted.want, v.listing.Changes)
			s.delete(lower, upper)
		})
	}
	s.t = t
}

// plantable creates the files that the test writes to.
func plantable(t *testing.T, root string) {
	t.Helper()
	require.NoError(t, os.Mkdir(filepath.Join(root, "dir"), 0o755))
	for name, content := range map[string]string{
		"dir/file": strings.Repeat("file", 8<<10), "dir/other": "other", "dir/capable": "", "large": strings.Repeat("large", 1<<20/5),
	} {
		path := filepath.Join(root, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o755))
		if name == "dir/capable" {
			require.NoError(t, unix.Setxattr(path, "user.padding", []byte(strings.Repeat("p", 60)), 0))
			require.NoError(t, unix.Setxattr(path, "security.capability", capability(), 0))
		}
		whole := time.Unix(1_600_000_000, 0)
		require.NoError(t, os.Chtimes(path, whole, whole))
	}
}

// capability is a version 2 capability with some rights.
func capability() []byte {
	return append([]byte{1, 0, 0, 2}, 0xa1, 0xb2, 0xc3, 0x04, 0x15, 0x26, 0x37, 0x08, 0, 0, 0, 0, 0, 0, 0, 0)
}

func poke(t *testing.T, dev string, block int64, b []byte) {
	t.Helper()
	require.Positive(t, block)
	f, err := os.OpenFile(dev, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(b, block*4096)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
}

func debugfs(t *testing.T, dev string, args ...string) string {
	t.Helper()
	out, err := exec.Command("debugfs", append(args, dev)...).Output()
	require.NoError(t, err)
	return string(out)
}

// ask returns a number from the output of debugfs.
func ask(t *testing.T, dev, request, pattern string) int64 {
	t.Helper()
	answer := debugfs(t, dev, "-R", request)
	found := regexp.MustCompile(pattern).FindStringSubmatch(answer)
	require.NotNil(t, found, answer)
	n, err := strconv.ParseInt(found[1], 10, 64)
	require.NoError(t, err)
	return n
}
