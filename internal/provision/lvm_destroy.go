package provision

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/metadata"
)

// destroying is the file in the root directory with the ID of a removed pool in mode "direct-lvm" whose
// volume group was to be removed next. Without it, a missing group may be on a detached disk.
const destroying = "destroying"

// Destroy implements Mode.
func (d directLVM) Destroy(
	ctx context.Context, store *metadata.Store, control *devmapper.Control, rec metadata.PoolRecord,
) error {
	if err := closePool(ctx, d, control, rec); err != nil {
		return err
	}
	spec := lvmSpec(rec)
	path := filepath.Join(filepath.Dir(store.Path()), destroying)
	id, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if rec.Complete && string(id) != spec.ID {
		if err := spec.RequireGroup(ctx); err != nil {
			return asPrecondition(err)
		}
	}
	return asPrecondition(spec.Remove(ctx, func() error { return recordDestruction(path, spec.ID) }))
}

func recordDestruction(path, id string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(id)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// EndDestruction removes the record of a destruction. The root has no store any more, or its pool was
// opened.
func EndDestruction(root string) error { return removeFile(filepath.Join(root, destroying)) }
