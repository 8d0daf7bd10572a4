package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/pool/repair"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/metadata"
)

// StoredPool is the pool that belongs to a store, as far as that can be said
// without the kernel.
type StoredPool struct{ rec metadata.PoolRecord }

// ReadPool describes the pool that belongs to store. It is errdefs.ErrNotFound
// if there is none.
func ReadPool(ctx context.Context, store *metadata.Store) (StoredPool, error) {
	rec, err := poolRecord(ctx, store)
	return StoredPool{rec}, err
}

// Formed tells whether the pool was made to the end.
func (p StoredPool) Formed() bool { return p.rec.Formed }

// Files are those that a loop pool lies on; there are none of another pool.
func (p StoredPool) Files() []string {
	if p.rec.Mode != ModeLoop {
		return nil
	}
	return []string{p.rec.Loop.DataFile, p.rec.Loop.MetadataFile}
}

// OpenLoaded takes over the pool if it is in the kernel. It returns
// devmapper.ErrNotFound if it is not.
func (p StoredPool) OpenLoaded(control *devmapper.Control) (*pool.Pool, error) {
	switch p.rec.Mode {
	case metadata.ModeExisting:
		existing, _, err := pool.OpenLoadedExisting(control, existingSpec(p.rec))
		return existing, err
	case ModeLoop:
		return pool.OpenLoaded(control, loopSpec(p.rec))
	}
	if p.rec.LVM.LVUUID == "" {
		return nil, fmt.Errorf("pool %s is not made yet: %w", p.rec.Name, devmapper.ErrNotFound)
	}
	return pool.OpenLoadedLVM(control, lvmSpec(p.rec))
}

// ReadMetadata calls read with the metadata of the pool, which must have been
// formed and must not be in the kernel. In a pool of LVM's, LVM shows it there
// for the moment.
func (p StoredPool) ReadMetadata(ctx context.Context, read func(*thinmeta.Metadata) error) error {
	switch p.rec.Mode {
	case ModeDirectLVM:
		return pool.ReadMetadataLVM(ctx, lvmSpec(p.rec), read)
	case metadata.ModeExisting:
		return fmt.Errorf("pool %s: %w: whoever made it has to activate it", p.rec.Existing.Device, pool.ErrNotActive)
	}
	return pool.ReadMetadataFile(loopSpec(p.rec), read)
}

// DestroyPool takes the pool that belongs to store out of the kernel and removes
// what it lies on, with every snapshot in it. From a pool that thinsnap did not
// make it removes the store's own volumes, and nothing else. It is
// errdefs.ErrUnavailable, and all is still there, while a volume is in use. The
// store itself is the caller's to remove.
func DestroyPool(ctx context.Context, store *metadata.Store, control *devmapper.Control) error {
	stored, err := ReadPool(ctx, store)
	if err != nil {
		return fmt.Errorf("destroy the pool: %w", err)
	}
	if stored.rec.Mode == metadata.ModeExisting {
		if err := emptyExisting(ctx, store, control, stored.rec); err != nil {
			return fmt.Errorf("destroy the pool: %w", Classified(refused(err)))
		}
		return nil
	}
	p, err := stored.OpenLoaded(control)
	if err == nil {
		err = p.Close(ctx)
	} else if errors.Is(err, devmapper.ErrNotFound) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("destroy the pool: %w", Classified(err))
	}
	// gofail: var afterPoolClose struct{}
	if stored.rec.Mode == ModeDirectLVM {
		return refused(pool.RemoveLVM(ctx, lvmSpec(stored.rec)))
	}
	files := stored.rec.Loop
	return errors.Join(removeFile(files.DataFile), removeFile(files.MetadataFile), repair.RemoveAll(files.MetadataFile))
}
