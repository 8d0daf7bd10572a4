package filesystem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"strings"

	"github.com/thinsnap/thinsnap/devmapper"
)

// Superblock has fields of a file system's superblock. While the file system is
// mounted, the counts lag behind.
type Superblock struct {
	// Type is Ext4 or XFS.
	Type string
	// UUID is in the usual text form.
	UUID string
	// Bytes is the size of the file system.
	Bytes uint64
	// BlockBytes is the size of its blocks.
	BlockBytes uint64
	// Inodes is the number of inodes in use, reserved ones included.
	Inodes uint64
	// NeedsRecovery is true if the next writable mount of an ext4 must replay its journal, or
	// delete files that were removed while open. It is never set for xfs, whose superblock does not
	// show it: see [Verify].
	NeedsRecovery bool
	// Unclean is true if an ext4 was mounted without a journal, and has not been unmounted since.
	Unclean bool
	// Damage describes the damage that the kernel has found in the file system; "" if none.
	Damage string

	// LSN is the log sequence number of the last write of an xfs's superblock. Each unmount of a
	// writable mount changes it.
	LSN uint64

	// unsafe is the reason why the host does not mount it, or "".
	unsafe      string
	imaxPercent uint32
}

// Mountable returns ErrUnsafe for a file system that the host does not mount.
func (sb Superblock) Mountable() error {
	if sb.unsafe == "" {
		return nil
	}
	return fmt.Errorf("the %s has %s: %w", sb.Type, sb.unsafe, ErrUnsafe)
}

// superblockBytes covers both superblocks: ext4's at 1024, xfs's at 0.
const superblockBytes = 4096

// Identify reads the superblock of the file system on dev with direct I/O, because xfs writes it
// past the page cache. It returns ErrNotRecognised for a device without one.
func Identify(dev string) (Superblock, error) {
	block, err := devmapper.ReadDirect(dev)
	if err != nil {
		return Superblock{}, fmt.Errorf("read the superblock of %s: %w", dev, err)
	}
	sb, err := parse(block)
	if err != nil {
		return Superblock{}, fmt.Errorf("identify %s: %w", dev, err)
	}
	return sb, nil
}

// Read reads the superblock of a file system through a reader of its device. It returns
// ErrNotRecognised for a device without one.
func Read(r io.ReaderAt) (Superblock, error) {
	block := make([]byte, superblockBytes)
	n, err := r.ReadAt(block, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Superblock{}, fmt.Errorf("read a superblock: %w", err)
	}
	return parse(block[:n])
}

// parse parses the superblock of either file system. It does not trust the fields: for
// impossible values it returns ErrNotRecognised.
func parse(block []byte) (Superblock, error) {
	if len(block) < superblockBytes {
		return Superblock{}, ErrNotRecognised
	}
	if string(block[:4]) == "XFSB" {
		return parseXFS(block)
	}
	return parseExt4(block[1024:])
}

// parseXFS parses struct xfs_dsb of fs/xfs/libxfs/xfs_format.h, big-endian.
func parseXFS(sb []byte) (Superblock, error) {
	be := binary.BigEndian
	found := Superblock{
		Type:        XFS,
		UUID:        formatUUID(sb[32:48]),
		BlockBytes:  uint64(be.Uint32(sb[4:])),
		LSN:         be.Uint64(sb[240:]),
		imaxPercent: uint32(sb[127]),
	}
	const (
		versionBits = 0xf
		version5    = 5
		needsRepair = 0x10
	)
	if be.Uint16(sb[100:])&versionBits == version5 && be.Uint32(sb[216:])&needsRepair != 0 {
		found.Damage = "it is marked as in need of repair"
	}
	return found.withCounts(be.Uint64(sb[8:]), be.Uint64(sb[128:]), be.Uint64(sb[136:]))
}

// parseExt4 parses struct ext4_super_block of fs/ext4/ext4.h, little-endian.
func parseExt4(sb []byte) (Superblock, error) {
	le := binary.LittleEndian
	const (
		magic = 0xEF53

		stateValid  = 0x1
		stateErrors = 0x2

		incompatReplay        = 0x4
		incompatJournalDevice = 0x8
		incompat64bit         = 0x80
		incompatMMP           = 0x100
		roCompatOrphans       = 0x10000
	)
	// Block sizes are 1 KiB to 64 KiB: a shift of 0 to 6.
	shift := le.Uint32(sb[0x18:])
	if le.Uint16(sb[0x38:]) != magic || shift > 6 {
		return Superblock{}, ErrNotRecognised
	}
	state := le.Uint16(sb[0x3A:])
	incompat, roCompat := le.Uint32(sb[0x60:]), le.Uint32(sb[0x64:])
	blocks := uint64(le.Uint32(sb[0x4:]))
	if incompat&incompat64bit != 0 {
		blocks |= uint64(le.Uint32(sb[0x150:])) << 32
	}
	found := Superblock{
		Type:          Ext4,
		UUID:          formatUUID(sb[0x68:0x78]),
		BlockBytes:    uint64(1024) << shift,
		NeedsRecovery: incompat&incompatReplay != 0 || roCompat&roCompatOrphans != 0 || le.Uint32(sb[0xE8:]) != 0,
		Unclean:       state&stateValid == 0,
	}
	if count := le.Uint32(sb[0x194:]); count > 0 || state&stateErrors != 0 {
		found.Damage = fmt.Sprintf("the kernel has found %d errors in it", max(count, 1))
	}
	journalDevice, mountOptions := le.Uint32(sb[0xE4:]), string(sb[0x200:0x240])
	switch {
	case incompat&incompatJournalDevice != 0, journalDevice != 0,
		strings.Contains(mountOptions, "journal_dev"), strings.Contains(mountOptions, "journal_path"):
		found.unsafe = "its journal on another device, which a mount would open"
	case incompat&incompatMMP != 0:
		found.unsafe = "multiple mount protection, for which a mount waits up to hours"
	}
	return found.withCounts(blocks, uint64(le.Uint32(sb[0x0:])), uint64(le.Uint32(sb[0x10:])))
}

// withCounts sets the fields that follow from the counts. It refuses impossible ones: devices are
// smaller than 2^63 bytes, and blocks are powers of two from 512 bytes (xfs) to 64 KiB. The counts
// of inodes may contradict each other.
func (sb Superblock) withCounts(blocks, inodes, freeInodes uint64) (Superblock, error) {
	if sb.BlockBytes < 512 || sb.BlockBytes > 64<<10 || bits.OnesCount64(sb.BlockBytes) != 1 ||
		blocks > math.MaxInt64/sb.BlockBytes || inodes > math.MaxInt64 {
		return Superblock{}, ErrNotRecognised
	}
	sb.Bytes, sb.Inodes = blocks*sb.BlockBytes, inodes-min(freeInodes, inodes)
	return sb, nil
}

func formatUUID(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
