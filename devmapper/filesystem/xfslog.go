package filesystem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

// The layout of an xfs's log is that of fs/xfs/libxfs/xfs_log_format.h, big-endian.
const (
	logBlock        = 512 // BBSIZE: the unit of the log
	logRecordMagic  = 0xFEEDbabe
	logVersion2     = 2
	logHeaderCovers = 32 << 10 // XLOG_HEADER_CYCLE_SIZE
	logUnmount      = 0x20     // XLOG_UNMOUNT_TRANS
	// logMostRecord is the size of the largest record, in blocks: its data and its headers.
	logMostRecord = 256<<10/logBlock + 8
)

// XFSLogClean reports whether the log of an xfs has nothing to replay: it ends in the record that
// an unmount writes. r reads its device, which must not be written to. It returns ErrNotRecognised
// for another file system, and for a log that is external or exceeds the device.
//
// It finds the end of the log as the kernel does (xlog_find_head and xlog_find_tail of
// fs/xfs/xfs_log_recover.c), but does not look for holes before it: an unmount does not leave any.
func XFSLogClean(r io.ReaderAt) (bool, error) {
	l, err := openXFSLog(r)
	if err != nil {
		return false, err
	}
	clean, err := l.clean()
	if err != nil {
		return false, fmt.Errorf("read the log of an xfs: %w", err)
	}
	return clean, nil
}

type xfsLog struct {
	r      io.ReaderAt
	start  int64 // byte of the device
	blocks int64 // of logBlock bytes
}

func openXFSLog(r io.ReaderAt) (xfsLog, error) {
	sb := make([]byte, superblockBytes)
	n, err := r.ReadAt(sb, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return xfsLog{}, fmt.Errorf("read a superblock: %w", err)
	}
	known, err := parse(sb[:n])
	if err != nil {
		return xfsLog{}, err
	}
	be := binary.BigEndian
	// sb_logstart, sb_agblklog, sb_agblocks, sb_logblocks of struct xfs_dsb.
	start, shift := be.Uint64(sb[48:]), sb[124]
	groupBlocks, blocks := uint64(be.Uint32(sb[84:])), uint64(be.Uint32(sb[96:]))
	if known.Type != XFS || start == 0 || blocks == 0 || shift > 32 || groupBlocks == 0 ||
		bits.Len64(groupBlocks-1) > int(shift) {
		return xfsLog{}, ErrNotRecognised
	}
	group, within := start>>shift, start&(1<<shift-1)
	all := known.Bytes / known.BlockBytes
	if group > all || within > all || group*groupBlocks+within+blocks > all {
		return xfsLog{}, ErrNotRecognised
	}
	return xfsLog{
		r:      r,
		start:  int64((group*groupBlocks + within) * known.BlockBytes),
		blocks: int64(blocks * known.BlockBytes / logBlock),
	}, nil
}

func (l xfsLog) read(block int64) ([]byte, error) {
	b := make([]byte, logBlock)
	if n, err := l.r.ReadAt(b, l.start+block*logBlock); n < len(b) {
		return nil, err
	}
	return b, nil
}

// cycle returns the number of the round in which a block was written, or 0 if it never was. Each
// block begins with it, except the first one of a record.
func (l xfsLog) cycle(block int64) (uint32, error) {
	b, err := l.read(block)
	if err != nil {
		return 0, err
	}
	if first := binary.BigEndian.Uint32(b); first != logRecordMagic {
		return first, nil
	}
	return binary.BigEndian.Uint32(b[4:]), nil
}

// head returns the block after the last record, which may be l.blocks, or 0 without records.
func (l xfsLog) head() (int64, error) {
	first, err := l.cycle(0)
	if err != nil || first == 0 {
		return 0, err
	}
	last, err := l.cycle(l.blocks - 1)
	if err != nil || last == first {
		return l.blocks, err
	}
	// Search for the first block of the previous round: low is not in it, high is.
	low, high := int64(0), l.blocks-1
	for high-low > 1 {
		middle := (low + high) / 2
		cycle, err := l.cycle(middle)
		switch {
		case err != nil:
			return 0, err
		case cycle == last:
			high = middle
		default:
			low = middle
		}
	}
	return high, nil
}

func (l xfsLog) clean() (bool, error) {
	head, err := l.head()
	if err != nil || head == 0 {
		return head == 0, err
	}
	for back := int64(1); back <= min(logMostRecord, l.blocks); back++ {
		at := (head - back + l.blocks) % l.blocks // a record can wrap around the end
		b, err := l.read(at)
		if err != nil {
			return false, err
		}
		if binary.BigEndian.Uint32(b) == logRecordMagic {
			return l.unmounted(b, at, back)
		}
	}
	return false, nil
}

// unmounted reports whether the record at a block is that of an unmount, and fills all blocks up to
// the head (xlog_check_unmount_rec).
func (l xfsLog) unmounted(header []byte, at, blocks int64) (bool, error) {
	be := binary.BigEndian
	headers := int64(1)
	if size := int64(be.Uint32(header[320:])); be.Uint32(header[8:])&logVersion2 != 0 && size > logHeaderCovers {
		headers = (size + logHeaderCovers - 1) / logHeaderCovers
	}
	data := (int64(be.Uint32(header[12:])) + logBlock - 1) / logBlock
	if operations := be.Uint32(header[40:]); operations != 1 || headers+data != blocks || data == 0 {
		return false, nil
	}
	b, err := l.read((at + headers) % l.blocks)
	if err != nil {
		return false, err
	}
	// struct xlog_op_header, with the cycle in place of oh_tid, then oh_len, oh_clientid, oh_flags.
	return b[9]&logUnmount != 0, nil
}
