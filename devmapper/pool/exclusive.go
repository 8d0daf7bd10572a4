package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// ErrUnknown is returned when the exclusive blocks of a volume cannot be counted at present: the
// pool has a metadata snapshot, or commits during each try.
var ErrUnknown = errors.New("the exclusive blocks cannot be counted at present")

// Exclusive returns the bytes that no other volume maps: those that the pool gets back when the
// volume is deleted. The volumes of besides, its snapshots, count as deleted too, unless they or
// the volume were written to since they were made. It returns thin.ErrNoDevice if there is no such
// volume, or ErrUnknown.
//
// It reads the last commit, and makes none. Its time grows with the blocks that the volume does not
// share.
func (p *Pool) Exclusive(ctx context.Context, id thin.ID, besides ...thin.ID) (uint64, error) {
	dev, err := p.openMetadata()
	if err != nil {
		return 0, err
	}
	defer dev.Close()
	others := make([]uint32, len(besides))
	for i, other := range besides {
		others[i] = uint32(other)
	}
	blocks, err := p.readPieces(ctx, dev,
		func(metadata *thinmeta.Metadata, first uint64, blocks int) (count, next uint64, more bool, err error) {
			return metadata.Exclusive(ctx, uint32(id), others, first, blocks)
		})
	switch {
	case errors.Is(err, thinmeta.ErrNoDevice):
		err = fmt.Errorf("%w: %w", err, thin.ErrNoDevice)
	case errors.Is(err, thinmeta.ErrNoCounts), errors.Is(err, errCommits):
		err = fmt.Errorf("%w: %w", err, ErrUnknown)
	}
	return blocks * p.blockBytes, err
}
