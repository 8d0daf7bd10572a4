package blockdev

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// DiscardPiece limits the mapped bytes that are discarded between two checks of the context. The
// kernel does not interrupt a discard, not even for SIGKILL, and a loop device takes a few
// milliseconds per MiB on a slow machine.
const DiscardPiece = 128 << 20

// Size returns the size in bytes of a block device (or a file).
func Size(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("size of a block device: %w", err)
	}
	defer func() { _ = f.Close() }()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("size of a block device: %w", err)
	}
	return uint64(size), nil
}

// Flush writes back a block device's dirty pages and flushes its write cache. For a thin volume the
// pool commits its metadata, too.
func Flush(path string) error {
	// Read-only, because closing a writable descriptor makes udev probe the device.
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("flush a block device: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("flush a block device: %w", err)
	}
	return nil
}

// SetReadOnly makes the kernel refuse write(2) to an open block device, and writable mounts of it,
// or accept them again (BLKROSET). Existing mounts and memory maps, and mapped devices on it, can
// still write. It replaces no table and raises no event. The device may refuse writes for other
// reasons, too.
func SetReadOnly(f *os.File, readOnly bool) error {
	value := 0
	if readOnly {
		value = 1
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, value); err != nil {
		return fmt.Errorf("set the read-only flag of %s: %w", f.Name(), err)
	}
	return nil
}

// Turn waits until a piece of work may run. The caller calls leave when the piece is done.
type Turn func(ctx context.Context) (leave func(), err error)

func (t Turn) do(ctx context.Context, piece func() error) error {
	if t == nil {
		return piece()
	}
	leave, err := t(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return piece()
}

// Discard discards length bytes at offset of an open block device (BLKDISCARD). Both must be
// multiples of 512 within the device (EINVAL). It returns EOPNOTSUPP if the device has no discards.
//
// It discards about DiscardPiece bytes at a time, in whole units of unit bytes: a thin pool ignores
// a discard of a part of a block. It awaits turn before each piece, unless turn is nil. Between
// pieces it stops with ctx.Err() when ctx ends.
func Discard(ctx context.Context, f *os.File, offset, length, unit uint64, turn Turn) error {
	return DiscardPieces(ctx, f, offset, length, DiscardPiece, unit, turn)
}

// DiscardPieces is Discard with pieces of another size, in bytes.
func DiscardPieces(ctx context.Context, f *os.File, offset, length, piece, unit uint64, turn Turn) error {
	chunk := (piece + unit - 1) / unit * unit
	for length > 0 {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("discard %s: %d bytes left: %w", f.Name(), length, err)
		}
		n := min(length, chunk)
		if err := turn.do(ctx, func() error { return discard(f, offset, n) }); err != nil {
			return fmt.Errorf("discard %d bytes at %d of %s: %w", n, offset, f.Name(), err)
		}
		offset += n
		length -= n
	}
	return nil
}

// Path returns the node in /dev of the block device with the given number, "MAJOR:MINOR", by the
// kernel's name of the device.
func Path(number string) (string, error) {
	target, err := os.Readlink(filepath.Join("/sys/dev/block", number))
	if err != nil {
		return "", fmt.Errorf("find block device %s: %w", number, err)
	}
	// sysfs writes "!" for "/" in names such as cciss/c0d0.
	return filepath.Join("/dev", strings.ReplaceAll(filepath.Base(target), "!", "/")), nil
}
