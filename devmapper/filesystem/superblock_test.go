package filesystem

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// image makes a file system in a file, which mkfs accepts as a device.
func image(t *testing.T, typ string, bytes int64, options ...string) string {
	t.Helper()
	_, err := exec.LookPath("mkfs." + typ)
	dmtest.RequireInstalled(t, err)
	path := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, bytes))
	require.NoError(t, Make(t.Context(), path, typ, options))
	return path
}

func TestIdentify(t *testing.T) {
	const uuid = "01234567-89ab-cdef-0123-456789abcdef"
	for typ, options := range map[string][]string{Ext4: {"-U", uuid}, XFS: {"-m", "uuid=" + uuid}} {
		t.Run(typ, func(t *testing.T) {
			const size = 512 << 20
			block, err := os.ReadFile(image(t, typ, size, options...))
			require.NoError(t, err)
			sb, err := parse(block[:superblockBytes])
			require.NoError(t, err)
			require.Equal(t, typ, sb.Type)
			require.Equal(t, uuid, sb.UUID)
			require.EqualValues(t, 4096, sb.BlockBytes)
			require.EqualValues(t, size, sb.Bytes)
			require.False(t, sb.NeedsRecovery)
			require.Less(t, sb.Inodes, uint64(64))
		})
	}
}

func TestMakeWritesLittle(t *testing.T) {
	path := image(t, Ext4, 10<<30)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.EqualValues(t, 10<<30, info.Size())
	out, err := exec.Command("du", "--block-size=1M", path).Output()
	require.NoError(t, err)
	var mib int
	_, err = fmt.Sscan(string(out), &mib)
	require.NoError(t, err)
	require.LessOrEqual(t, mib, 8, "a base volume must take little space, which needs e2fsprogs 1.47")
}

func TestMountFollowsNoLink(t *testing.T) {
	dir, link := t.TempDir(), filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(dir, link))
	_, err := Mount("/dev/null", Ext4, link, nil)
	require.ErrorIs(t, err, unix.ENOTDIR)
	require.NoError(t, Unmount(link))
	require.NoFileExists(t, link)
	require.DirExists(t, dir)
}

func TestMakeRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.ErrorIs(t, Make(t.Context(), path, "btrfs", nil), ErrUnsupported)
	require.ErrorContains(t, Make(t.Context(), path, Ext4, []string{"--no-such-option"}), "mkfs.ext4")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, Make(cancelled, path, Ext4, nil), context.Canceled)
}

func TestParseRefusesOtherContent(t *testing.T) {
	_, err := parse(make([]byte, superblockBytes))
	require.ErrorIs(t, err, ErrNotRecognised)
	_, err = parse(nil)
	require.ErrorIs(t, err, ErrNotRecognised)
}

// FuzzParse: a recognised superblock has plausible fields, although it is not trusted: its block
// size divides its size, and no count is too large.
func FuzzParse(f *testing.F) {
	f.Add(make([]byte, superblockBytes))
	xfs := make([]byte, superblockBytes)
	copy(xfs, "XFSB\x00\x00\x10\x00\x00\x00\x00\x00\x00\x01")
	f.Add(xfs)
	ext4 := make([]byte, superblockBytes)
	copy(ext4[1024:], "\x00\x01\x00\x00\x00\x02")
	copy(ext4[1024+0x38:], "\x53\xef")
	f.Add(ext4)
	f.Fuzz(func(t *testing.T, block []byte) {
		sb, err := parse(block)
		if err != nil {
			require.ErrorIs(t, err, ErrNotRecognised)
			return
		}
		require.Contains(t, []string{Ext4, XFS}, sb.Type)
		require.Len(t, sb.UUID, 36)
		require.GreaterOrEqual(t, sb.BlockBytes, uint64(512))
		require.LessOrEqual(t, sb.BlockBytes, uint64(64<<10))
		require.Zero(t, sb.Bytes%sb.BlockBytes)
		require.LessOrEqual(t, sb.Bytes, uint64(math.MaxInt64))
		require.LessOrEqual(t, sb.Inodes, uint64(math.MaxInt64))
	})
}

func TestParseRefusesImpossibleCounts(t *testing.T) {
	xfs := make([]byte, superblockBytes)
	copy(xfs, "XFSB")
	_, err := parse(xfs)
	require.ErrorIs(t, err, ErrNotRecognised, "a block size of 0 would be a divisor")
	binary.BigEndian.PutUint32(xfs[4:], 4096)
	binary.BigEndian.PutUint64(xfs[8:], 1<<60)
	_, err = parse(xfs)
	require.ErrorIs(t, err, ErrNotRecognised, "more bytes than possible")

	ext4 := make([]byte, superblockBytes)
	binary.LittleEndian.PutUint16(ext4[1024+0x38:], 0xEF53)
	binary.LittleEndian.PutUint32(ext4[1024:], 7)
	binary.LittleEndian.PutUint32(ext4[1024+0x10:], 9)
	sb, err := parse(ext4)
	require.NoError(t, err)
	require.Zero(t, sb.Inodes, "more inodes free than there are")
}

// TestParseHealth checks the fields about damage, at the offsets of the kernel's headers.
func TestParseHealth(t *testing.T) {
	le, be := binary.LittleEndian, binary.BigEndian
	block, err := os.ReadFile(image(t, Ext4, 64<<20))
	require.NoError(t, err)
	ext4 := block[:superblockBytes]
	block, err = os.ReadFile(image(t, XFS, MinXFS))
	require.NoError(t, err)
	xfs := block[:superblockBytes]
	for name, c := range map[string]struct {
		of     []byte
		change func(sb []byte)
		holds  func(sb Superblock) bool
	}{
		"ext4, unclean":     {ext4, func(sb []byte) { sb[0x3A] = 0 }, func(sb Superblock) bool { return sb.Unclean && sb.Damage == "" }},
		"ext4, errors":      {ext4, func(sb []byte) { sb[0x3A] = 3 }, func(sb Superblock) bool { return sb.Damage != "" && !sb.Unclean }},
		"ext4, error count": {ext4, func(sb []byte) { le.PutUint32(sb[0x194:], 7) }, func(sb Superblock) bool { return sb.Damage != "" }},
		"ext4, journal":     {ext4, func(sb []byte) { sb[0x60] |= 4 }, func(sb Superblock) bool { return sb.NeedsRecovery }},
		"ext4, orphans":     {ext4, func(sb []byte) { sb[0xE8] = 12 }, func(sb Superblock) bool { return sb.NeedsRecovery }},
		"ext4, orphan file": {ext4, func(sb []byte) { sb[0x66] |= 1 }, func(sb Superblock) bool { return sb.NeedsRecovery }},
		"xfs, to repair":    {xfs, func(sb []byte) { be.PutUint32(sb[216:], be.Uint32(sb[216:])|0x10) }, func(sb Superblock) bool { return sb.Damage != "" }},
	} {
		t.Run(name, func(t *testing.T) {
			sb, err := parse(c.of)
			require.NoError(t, err)
			require.False(t, c.holds(sb), "%+v", sb)
			require.NoError(t, sb.Mountable())
			changed := bytes.Clone(c.of)
			if sb.Type == Ext4 {
				c.change(changed[1024:])
			} else {
				c.change(changed)
			}
			sb, err = parse(changed)
			require.NoError(t, err)
			require.True(t, c.holds(sb), "%+v", sb)
		})
	}
}
