package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// pieceBlocks is the number of blocks of metadata that are read between two looks at whether the pool
// has committed.
const pieceBlocks = 256

// piece reads the metadata of one commit, about some number of blocks, for the mappings of a volume
// from its block first on. It returns a number, and where the next piece begins, if there is one.
type piece func(metadata *thinmeta.Metadata, first uint64, blocks int) (count, next uint64, more bool, err error)

// errCommits is returned when the pool commits all the time.
var errCommits = errors.New("the pool commits too often")

// readPieces adds the numbers of all pieces. Each is of one commit, and a later one than those before
// it. A piece during which the pool commits is read again, and is smaller; so the time of a walk does
// not depend on how often the pool commits. After many tries it is errCommits.
func (p *Pool) readPieces(ctx context.Context, dev io.ReaderAt, read piece) (total uint64, err error) {
	first, blocks := uint64(0), pieceBlocks
	for tries := 0; ; {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		metadata, err := thinmeta.Open(&keepingReader{ReaderAt: dev, most: keptBlocks})
		if err != nil {
			return 0, fmt.Errorf("read the metadata of pool %s: %w", p.name, err)
		}
		count, next, more, readErr := read(metadata, first, blocks)
		current, err := metadata.Current()
		switch {
		case err != nil:
			return 0, fmt.Errorf("read the metadata of pool %s: %w", p.name, err)
		case !current && tries == committedTries:
			return 0, fmt.Errorf("read the metadata of pool %s: %w", p.name, errCommits)
		case !current:
			if tries++; blocks == 1 {
				time.Sleep(committedPause)
			}
			blocks = max(blocks/4, 1)
			continue
		case readErr != nil:
			return 0, fmt.Errorf("read the metadata of pool %s: %w", p.name, readErr)
		}
		total += count
		if !more {
			return total, nil
		}
		first, tries, blocks = next, 0, min(2*blocks, pieceBlocks)
	}
}

// keepingReader keeps the blocks of metadata that it has read, but for the superblock, which changes. When
// they are most, it forgets them all: those that are read again and again are back soon.
type keepingReader struct {
	io.ReaderAt
	most int
	kept map[int64][]byte
}

// keptBlocks is how many blocks are kept for a piece: 1 MiB.
const keptBlocks = 256

func (r *keepingReader) ReadAt(b []byte, offset int64) (int, error) {
	if kept, ok := r.kept[offset]; ok && len(kept) == len(b) {
		return copy(b, kept), nil
	}
	n, err := r.ReaderAt.ReadAt(b, offset)
	if err == nil && offset != 0 {
		if r.kept == nil || len(r.kept) >= r.most {
			r.kept = make(map[int64][]byte)
		}
		r.kept[offset] = bytes.Clone(b)
	}
	return n, err
}
