// Package inactive reads the content of an inactive volume: it looks up each block in the metadata
// that the pool committed last, and reads the pool's data device. The volume must not be written to
// or deleted meanwhile.
package inactive

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// Volume is the content of a volume, with zeroes in place of unmapped blocks. It is not safe for
// concurrent use.
type Volume struct {
	ctx        context.Context
	tree       thinmeta.Tree
	data       io.ReaderAt
	blockBytes uint64
	bytes      uint64

	// last is the block of the last lookup plus 1, or 0.
	last   uint64
	at     thinmeta.Mapping
	mapped bool
}

// NewVolume returns the content of a volume of the given size in bytes. data is the pool's data
// device, with blocks of blockBytes.
func NewVolume(ctx context.Context, tree thinmeta.Tree, data io.ReaderAt, blockBytes, bytes uint64) *Volume {
	return &Volume{ctx: ctx, tree: tree, data: data, blockBytes: blockBytes, bytes: bytes}
}

// ReadAt fills p from an offset in bytes. At the end of the volume it returns fewer bytes and io.EOF.
func (v *Volume) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, fmt.Errorf("read at %d: %w", offset, unix.EINVAL)
	}
	done := 0
	for done < len(p) {
		at := uint64(offset) + uint64(done)
		if at >= v.bytes {
			return done, io.EOF
		}
		within := at % v.blockBytes
		part := p[done:]
		part = part[:min(uint64(len(part)), v.blockBytes-within, v.bytes-at)]
		if err := v.readBlock(part, at/v.blockBytes, within); err != nil {
			return done, err
		}
		done += len(part)
	}
	return done, nil
}

func (v *Volume) readBlock(p []byte, block, within uint64) (err error) {
	if v.last != block+1 {
		v.last = 0
		if v.at, v.mapped, err = v.tree.Lookup(v.ctx, block); err != nil {
			return err
		}
		v.last = block + 1
	}
	if !v.mapped {
		clear(p)
		return v.ctx.Err()
	}
	n, err := v.data.ReadAt(p, int64(v.at.Data*v.blockBytes+within))
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("block %d of the pool is past the end of its data device: %w", v.at.Data, thinmeta.ErrDamaged)
	}
	return err
}
