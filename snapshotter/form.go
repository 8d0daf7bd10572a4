package snapshotter

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/metadata"
)

// ModeLoop is the mode of a pool that lies on two sparse files.
const ModeLoop = "loop"

// LoopConfig describes the loop pool that belongs to a store. Where nothing else is
// said, all but Dir and Name matter only when the pool is made.
type LoopConfig struct {
	// Dir is where the files of the pool are made, an absolute path.
	Dir string
	// Name of the pool's mapped device.
	Name string
	// BlockBytes is the block size; see pool.LoopSpec.
	BlockBytes uint64
	// DataBytes and MetadataBytes are the sizes of the sparse files.
	DataBytes, MetadataBytes uint64
	// LowWaterPercent may change from one time to the next; see pool.LoopSpec.
	LowWaterPercent uint64
}

// OpenLoopPool brings the loop pool that belongs to store into the kernel, or
// makes it if the store has none yet. What is to be made is recorded first, so
// that a crash in the middle is made good by calling it again.
//
// It is errdefs.ErrFailedPrecondition if the pool cannot be the one that the
// store belongs to, or if the configuration describes another one.
func OpenLoopPool(ctx context.Context, store *metadata.Store, control *devmapper.Control, config LoopConfig) (*pool.Pool, error) {
	rec, err := poolRecord(ctx, store)
	if errdefs.IsNotFound(err) {
		rec, err = recordLoopPool(ctx, store, config)
	}
	if err != nil {
		return nil, err
	}
	if err := sameLoopPool(rec, config); err != nil {
		return nil, err
	}
	// gofail: var afterPoolRecord struct{}
	spec := loopSpec(rec)
	spec.LowWaterPercent = config.LowWaterPercent
	if !rec.Formed {
		log.G(ctx).WithField("pool", rec.Name).WithField("data", rec.Loop.DataFile).Info("making a loop pool")
		if err := pool.CreateLoopFiles(spec, config.DataBytes, config.MetadataBytes); err != nil {
			return nil, err
		}
		// gofail: var afterLoopFiles struct{}
	}
	p, err := pool.OpenLoop(ctx, control, spec, rec.Formed)
	if errors.Is(err, pool.ErrWrongPool) || errors.Is(err, pool.ErrNameTaken) || errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w; nothing was changed: %w", err, errdefs.ErrFailedPrecondition)
	}
	if failed := (*devmapper.Error)(nil); rec.Formed && errors.As(err, &failed) && failed.Op == "load" {
		return nil, fmt.Errorf("%w: the kernel does not take the pool's metadata in %s (see dmesg); "+
			"if the disk below it is well, `thinsnap pool repair` mends it, and keeps what is there: %w",
			err, rec.Loop.MetadataFile, errdefs.ErrDataLoss)
	}
	if err != nil || rec.Formed {
		return p, err
	}
	// gofail: var beforePoolFormed struct{}
	rec.Formed = true
	return p, store.Update(ctx, func(tx *metadata.Tx) error { return tx.SetPool(rec) })
}

func poolRecord(ctx context.Context, store *metadata.Store) (metadata.PoolRecord, error) {
	var rec metadata.PoolRecord
	err := store.View(ctx, func(tx *metadata.Tx) (err error) {
		rec, err = tx.Pool()
		return err
	})
	return rec, err
}

// recordLoopPool puts down which pool is about to be made.
func recordLoopPool(ctx context.Context, store *metadata.Store, config LoopConfig) (metadata.PoolRecord, error) {
	rec := metadata.PoolRecord{
		ID:        rand.Text(),
		Mode:      ModeLoop,
		Name:      config.Name,
		BlockSize: config.BlockBytes,
		Created:   now(),
		Loop:      loopFiles(config),
	}
	if err := requireNoFiles(rec.Loop); err != nil {
		return rec, err
	}
	return rec, store.Update(ctx, func(tx *metadata.Tx) error { return tx.SetPool(rec) })
}

// requireNoFiles refuses to make a pool where one seems to be.
func requireNoFiles(files metadata.LoopFiles) error {
	for _, file := range []string{files.DataFile, files.MetadataFile} {
		if _, err := os.Lstat(file); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is there, but the store knows of no pool: "+
				"put the store that belongs to it back, or remove it with `thinsnap pool destroy`: %w", file, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// PlanLoopPool returns what OpenLoopPool would do to make the pool, as lines of
// shell, and its refusals. It changes nothing. A store that is nil is one that
// knows of no pool.
func PlanLoopPool(ctx context.Context, store *metadata.Store, config LoopConfig) ([]string, error) {
	files := loopFiles(config)
	begun := false
	if store != nil {
		rec, err := poolRecord(ctx, store)
		if err == nil {
			begun, err = true, sameLoopPool(rec, config)
			files = rec.Loop
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
	if !begun {
		if err := requireNoFiles(files); err != nil {
			return nil, err
		}
	}
	return []string{
		fmt.Sprintf("truncate --size %d %s", config.DataBytes, files.DataFile),
		fmt.Sprintf("truncate --size %d %s", config.MetadataBytes, files.MetadataFile),
	}, nil
}

func loopFiles(config LoopConfig) metadata.LoopFiles {
	return metadata.LoopFiles{
		DataFile:     filepath.Join(config.Dir, "data"),
		MetadataFile: filepath.Join(config.Dir, "metadata"),
	}
}

// differs says that a setting is not the one that the pool was made with.
func differs(key string, is, wanted any) error {
	return fmt.Errorf("%s is %v in the configuration, but the pool was made with %v: "+
		"change it back, or begin anew with `thinsnap pool destroy`: %w", key, wanted, is, errdefs.ErrFailedPrecondition)
}

// sameLoopPool refuses a configuration that describes another pool than the one
// that is there.
func sameLoopPool(rec metadata.PoolRecord, config LoopConfig) error {
	switch {
	case rec.Mode != ModeLoop:
		return differs("pool.mode", rec.Mode, ModeLoop)
	case rec.Name != config.Name:
		return differs("pool.name", rec.Name, config.Name)
	case rec.BlockSize != config.BlockBytes:
		return differs("pool.block_size", rec.BlockSize, config.BlockBytes)
	}
	return nil
}

func loopSpec(rec metadata.PoolRecord) pool.LoopSpec {
	return pool.LoopSpec{
		ID:           rec.ID,
		Name:         rec.Name,
		BlockBytes:   rec.BlockSize,
		DataFile:     rec.Loop.DataFile,
		MetadataFile: rec.Loop.MetadataFile,
	}
}

func removeFile(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
