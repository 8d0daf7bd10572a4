package pool

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// ErrWritten is returned when a volume is written to while its mappings are read.
var ErrWritten = errors.New("the volume was written to while its mappings were read")

// Delta calls yield with the blocks that only one of two volumes maps, or that both map to different
// blocks of the pool, in order ([thinmeta.Delta]), in blocks of [Status.BlockBytes]. It returns the
// first error of yield, and thin.ErrNoDevice unless the pool has both volumes.
//
// It reads the last commit and makes none: after a write to one of the volumes call Commit first.
// If one is written to before Delta returns, Delta returns ErrWritten, and the blocks that yield
// got may be wrong. The pool may commit other changes. The time grows with the number of blocks on
// which the volumes differ.
func (p *Pool) Delta(ctx context.Context, left, right thin.ID, yield func(thinmeta.Run) error) error {
	dev, err := p.openMetadata()
	if err != nil {
		return err
	}
	defer dev.Close()
	trees, err := p.trees(ctx, dev, left, right)
	if err != nil {
		return err
	}
	var readErr error
	for run, err := range thinmeta.Delta(ctx, trees[0], trees[1]) {
		if err != nil {
			readErr = fmt.Errorf("read the metadata of pool %s: volumes %d and %d: %w", p.name, left, right, err)
			break
		}
		if err := yield(run); err != nil {
			return err
		}
	}
	// If a volume was written to or deleted, that explains any error.
	after, err := p.trees(ctx, dev, left, right)
	if err != nil {
		return errors.Join(err, readErr)
	}
	for i, id := range []thin.ID{left, right} {
		if trees[i].Root() != after[i].Root() {
			return fmt.Errorf("volume %d of pool %s: %w", id, p.name, ErrWritten)
		}
	}
	return readErr
}

// trees returns the trees of volumes at one commit. They can be read while dev is open.
func (p *Pool) trees(ctx context.Context, dev io.ReaderAt, ids ...thin.ID) (trees []thinmeta.Tree, err error) {
	err = p.readCommittedOn(ctx, dev, func(metadata *thinmeta.Metadata) error {
		trees = nil
		for _, id := range ids {
			tree, err := metadata.Tree(ctx, uint32(id))
			if err != nil {
				return err
			}
			trees = append(trees, tree)
		}
		return nil
	})
	if errors.Is(err, thinmeta.ErrNoDevice) {
		err = fmt.Errorf("%w: %w", err, thin.ErrNoDevice)
	}
	return trees, err
}
