package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/provision"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// CreatePool creates the pool of a root, and describes it. No daemon may be running on the root. If
// the root has a pool, it fails with errdefs.ErrAlreadyExists.
func CreatePool(ctx context.Context, c config.Config) (_ admin.Pool, err error) {
	d, err := openRoot(c)
	if err != nil {
		return admin.Pool{}, err
	}
	defer func() { err = errors.Join(err, d.closeRoot()) }()
	if err := requireNoPool(ctx, c, d.store); err != nil {
		return admin.Pool{}, err
	}
	if err := d.openPool(ctx); err != nil {
		return admin.Pool{}, err
	}
	return d.Pool(ctx)
}

// requireNoPool fails if the root has a complete pool.
func requireNoPool(ctx context.Context, c config.Config, store *metadata.Store) error {
	rec, err := store.Pool(ctx)
	switch {
	case err == nil && rec.Complete:
		return fmt.Errorf("the root %s already has pool %s: %w", c.Root, rec.Name, errdefs.ErrAlreadyExists)
	case err != nil && !errdefs.IsNotFound(err):
		return err
	}
	return nil
}

// RecordedPool returns the record of the pool that DestroyPool would remove, or a zero record if
// the store has none. It fails with errdefs.ErrNotFound if the root has no store. No daemon may be
// running on the root.
func RecordedPool(ctx context.Context, c config.Config) (rec metadata.PoolRecord, err error) {
	store, err := metadata.Open(rootdir.Store(c.Root), metadata.Options{ReadOnly: true})
	if errors.Is(err, os.ErrNotExist) {
		return rec, noData(c)
	}
	if err != nil {
		return rec, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	rec, err = store.Pool(ctx)
	if errdefs.IsNotFound(err) {
		err = nil
	}
	return rec, err
}

// noData is the error for a root without a store.
func noData(c config.Config) error {
	return fmt.Errorf("no thinsnap data in %s: %w", c.Root, errdefs.ErrNotFound)
}

// DestroyPool removes a root's pool with every snapshot, and the store. From a foreign pool it
// removes only the store's volumes. No daemon may be running on the root. While the pool is in use,
// it fails with errdefs.ErrUnavailable and changes nothing.
func DestroyPool(ctx context.Context, c config.Config) error {
	if _, err := os.Stat(rootdir.Store(c.Root)); errors.Is(err, os.ErrNotExist) {
		return noData(c)
	}
	d, err := openRoot(c)
	if err != nil {
		return err
	}
	if err = filesystem.UnmountAll(rootdir.Mounts(c.Root)); err == nil {
		err = provision.Destroy(ctx, d.store, d.control)
	}
	if errdefs.IsNotFound(err) {
		err = nil // a store without a pool
	}
	// The store goes last, so that DestroyPool can be repeated.
	if err := errors.Join(err, d.closeRoot()); err != nil {
		return err
	}
	// gofail: var beforeRemoveStore struct{}
	if err := os.Remove(rootdir.Store(c.Root)); err != nil {
		return err
	}
	return provision.EndDestruction(c.Root)
}
