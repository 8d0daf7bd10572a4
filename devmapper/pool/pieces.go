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

// pieceBlocks is the number of metadata blocks that are read between two checks for a commit.
const pieceBlocks = 256

// piece reads about the given number of metadata blocks of one commit, for the mappings of a volume
// from its block first on. It returns a count, and where the next piece begins if there are more.
type piece func(metadata *thinmeta.Metadata, first uint64, blocks int) (count, next uint64, more bool, err error)

// errCommits is returned when the pool commits during each try.
var errCommits = errors.New("the pool commits too often")

// readPieces adds the counts of all pieces, each of one commit, in order. A piece during which the
// pool commits is read again with fewer blocks, so the duration does not depend on the rate of
// commits. After committedTries it returns errCommits.
func (p *Pool) readPieces(ctx context.Context, dev io.ReaderAt, read piece) (total uint64, err error) {
	first, blocks := uint64(0), pieceBlocks
	for tries := 0; ; {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		metadata, err := thinmeta.Open(&keepingReader{ReaderAt: dev, limit: keptBlocks})
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

// keepingReader caches the metadata blocks that it has read, except the superblock, which changes.
// When it has limit blocks, it drops them all: frequently read ones are soon cached again.
type keepingReader struct {
	io.ReaderAt
	limit int
	kept  map[int64][]byte
}

// keptBlocks is the number of blocks cached for a piece: 1 MiB.
const keptBlocks = 256

func (r *keepingReader) ReadAt(b []byte, offset int64) (int, error) {
	if kept, ok := r.kept[offset]; ok && len(kept) == len(b) {
		return copy(b, kept), nil
	}
	n, err := r.ReaderAt.ReadAt(b, offset)
	if err == nil && offset != 0 {
		if r.kept == nil || len(r.kept) >= r.limit {
			r.kept = make(map[int64][]byte)
		}
		r.kept[offset] = bytes.Clone(b)
	}
	return n, err
}
