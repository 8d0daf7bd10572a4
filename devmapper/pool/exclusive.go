package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// ErrUnknown is returned when the pool cannot tell now which blocks a volume has for itself: while it has
// a metadata snapshot, and when it commits all the time.
var ErrUnknown = errors.New("the pool cannot tell it now")

// Exclusive returns the bytes of a volume that no other volume maps: what the pool gets back when it is
// deleted. The volumes of besides count as deleted too, as long as neither they nor the volume were
// written to since they were its snapshots. It is thin.ErrNoDevice if there is no such volume, or
// ErrUnknown.
//
// It tells what the pool has committed, and makes no commit. Its time grows with what the volume does not
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
