package provision

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/metadata"
)

// destroying is the file in the root directory with the ID of the pool in mode "direct-lvm" whose
// destruction began. Without it, a missing volume group may be on a detached disk.
const destroying = "destroying"

// Destroy implements Mode.
func (d directLVM) Destroy(
	ctx context.Context, store *metadata.Store, control *devmapper.Control, rec metadata.PoolRecord,
) error {
	if err := closePool(ctx, d, control, rec); err != nil {
		return err
	}
	spec := lvmSpec(rec)
	if rec.Complete {
		if err := beginDestruction(ctx, filepath.Dir(store.Path()), spec); err != nil {
			return asPrecondition(err)
		}
	}
	return asPrecondition(spec.Remove(ctx))
}

// beginDestruction records that the pool's destruction begins. It fails with pool.ErrWrongPool if LVM
// finds no volume group of the pool, unless an earlier destruction began.
func beginDestruction(ctx context.Context, root string, spec pool.LVMSpec) error {
	path := filepath.Join(root, destroying)
	if id, err := os.ReadFile(path); err == nil && string(id) == spec.ID {
		return nil
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := spec.RequireGroup(ctx); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(spec.ID)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	dir, err := os.Open(root)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// EndDestruction removes the record of a destruction. The root has no store any more, or its pool was
// opened.
func EndDestruction(root string) error { return removeFile(filepath.Join(root, destroying)) }
