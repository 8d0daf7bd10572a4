// Package snapshotter implements containerd's snapshots.Snapshotter on a thin pool. The volume of a
// snapshot is dm-thin's snapshot of its parent's volume; a View uses its parent's volume.
//
// It orders the changes to the store (package metadata), which is authoritative, and to the Pool, which
// calls the kernel. The order makes a crash harmless:
//
//   - Prepare creates the volume, then stores the record while it activates the volume. A crash before the
//     record leaves a volume without an owner, whose id is in an open lease. The next start deletes it.
//   - Commit flushes the volume, then changes the record.
//   - Remove deletes the record and moves the volume's id to the trash, in one transaction. The volume is
//     deleted in the background, now or after a restart.
//
// Most operations have a file of their name. settle finishes removals, and cleans up after failed
// operations and crashes.
package snapshotter

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/metadata"
)

// Pool is the part of a thin pool that a Snapshotter uses; *pool.Pool implements it. Errors are those of
// packages pool, thin, thinmeta and devmapper.
type Pool interface {
	CreateThin(ctx context.Context, id thin.ID) error
	CreateSnap(ctx context.Context, id, origin thin.ID) error
	Delete(ctx context.Context, id thin.ID) error
	Volumes(ctx context.Context, first, last thin.ID) (map[thin.ID]bool, error)
	Writes(ctx context.Context, id thin.ID) (thinmeta.Writes, error)
	Twins(ctx context.Context, id thin.ID) ([]thin.ID, error)
	Time(ctx context.Context) (uint32, error)
	SetTransactionID(ctx context.Context, from, to uint64) error
	Status(ctx context.Context) (pool.Status, error)
	RecentStatus(ctx context.Context, age time.Duration) (pool.Status, error)
	CachedStatus(ctx context.Context, age time.Duration) (pool.Status, error)
	VolumePath(id thin.ID) string
	IsActive(id thin.ID) bool

	Activate(ctx context.Context, id thin.ID, bytes uint64, readOnly bool) (pool.Volume, error)
	Deactivate(ctx context.Context, id thin.ID) error
	Lookup(ctx context.Context, id thin.ID) (pool.Volume, error)
	Active(ctx context.Context) ([]pool.Volume, error)
	Suspend(ctx context.Context, id thin.ID) error
	Resume(id thin.ID) error
	SetReadOnly(id thin.ID, readOnly bool) error
	Flush(ctx context.Context, id thin.ID) error
	Discard(ctx context.Context, id thin.ID, turn blockdev.Turn) error
	Mapped(ctx context.Context, id thin.ID) (uint64, error)
	Usage(ctx context.Context, id, origin thin.ID, age time.Duration) (pool.Usage, error)
	Exclusive(ctx context.Context, id thin.ID, besides ...thin.ID) (uint64, error)
}

// Filesystem has the operations on file systems that a Snapshotter uses; filesystem.Host implements it.
type Filesystem interface {
	// Make creates an empty file system on a device that reads as zeroes.
	Make(ctx context.Context, dev, typ string, options []string) error
	// Identify reads the superblock.
	Identify(dev string) (filesystem.Superblock, error)
	// Grow grows the file system to bytes.
	Grow(dev, typ string, bytes uint64) error
	// Recover replays the journal of an ext4 or the log of an xfs.
	Recover(dev, typ string) error
	// Verify mounts a file system read-only, on a read-only device, and unmounts it. It returns
	// filesystem.ErrNeedsRecovery if the journal or log must be replayed first.
	Verify(dev, typ string) error
	// Sync writes back a mounted file system, and returns errors of earlier writeback.
	Sync(dev, typ string) error
	// Inodes returns the number of inodes in use.
	Inodes(dev, typ string) (uint64, error)
	// Mounted reports whether the file system is mounted.
	Mounted(dev, typ string) bool
	// Trim discards the free space among length bytes from start of a mounted file system; see
	// filesystem.Trim.
	Trim(dev, typ string, start, length uint64) (trimmed uint64, err error)
	// Mount adds a mount of a mounted file system below dir and returns its path. Unmount removes it. Both
	// can be repeated.
	Mount(dev, typ, dir string, options []string) (path string, err error)
	Unmount(dir string) error
}

// Config is the operator's configuration of snapshots.
type Config struct {
	// Filesystem is the type of new file systems: filesystem.Ext4 or filesystem.XFS. A snapshot has the
	// type of its parent.
	Filesystem string
	// BaseBytes is the default size in bytes of a snapshot; a multiple of 4096. A child of a larger
	// snapshot, and an unpack with a parent, have the parent's size instead.
	BaseBytes uint64
	// MaxBytes is the largest size in bytes that a label can set; a multiple of 4096. The default size is
	// the limit if it is larger.
	MaxBytes uint64
	// MkfsOptions are arguments of mkfs; see filesystem.MkfsOptions.
	MkfsOptions []string
	// MountOptions are part of every returned mount of a device.
	MountOptions []string
	// MountDir is the absolute path of the directory for thinsnap's own mounts of mounted snapshots. Mounts
	// returns binds of these.
	MountDir string
	// MinFreePercent is the share of the pool's data and of its metadata that must be free for a new
	// snapshot: 0 to 100, 0 for no limit.
	MinFreePercent uint64
	// MakeRoom extends the pool, where it can, until the given percentage of it is free. It may be nil.
	MakeRoom func(ctx context.Context, percent uint64)
	// Spares is the maximum number of spares; 0 for none.
	Spares int
	// Reopen loads the pool into the kernel again after another program removed it. verify checks that it
	// is the store's pool. Reopen may be nil, and may be called concurrently.
	Reopen func(ctx context.Context, verify func(context.Context) error) error
	// Discard makes the deletion of a volume return its space to the disk or files below the pool.
	Discard bool
}

// Snapshotter implements snapshots.Snapshotter and snapshots.Cleaner.
type Snapshotter struct {
	config Config
	store  *metadata.Store
	pool   Pool
	fs     Filesystem

	ids       *idSource
	volumes   *volumes
	reaper    *reaper
	leftovers *leftovers
	spares    *spares
	copies    copies
	forks     forkTokens
	bases     keyLock[baseKey]
	// discarding is held while a piece of a volume is discarded; see discardTurn.
	discarding keyLock[struct{}]

	// underway counts the running operations, stuck those whose callers have given up.
	underway sync.WaitGroup
	stuck    atomic.Int64
	// asking limits the daemon to one status query of explain and cancelWhenFull at a time.
	asking chan struct{}
	// full records since when the pool may hold back writes.
	full fullPool
	// unwatch ends watch, poolTime.watch and watchServed.
	unwatch context.CancelFunc

	closeOnce sync.Once
	closeErr  error
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New returns a snapshotter for a store and the pool that the store records. In the background it finishes
// or undoes operations that a crash interrupted. Close closes the store, but not the pool.
//
// If the pool does not match the store, New changes nothing and returns errdefs.ErrFailedPrecondition.
func New(ctx context.Context, config Config, store *metadata.Store, p Pool, fs Filesystem) (*Snapshotter, error) {
	config.MkfsOptions = filesystem.MkfsOptions(config.Filesystem, config.MkfsOptions)
	s := &Snapshotter{
		config:  config,
		store:   store,
		pool:    p,
		fs:      fs,
		volumes: newVolumes(p),
		asking:  make(chan struct{}, 1),
	}
	s.ids = newIDSource(store, p)
	s.leftovers = &leftovers{pool: p}
	s.reaper = newReaper(s.settle)
	s.spares = newSpares(config.Spares, s.createSpareVolume, s.deleteSpareVolume)
	if err := s.verifyPool(ctx); err != nil {
		return nil, err
	}
	lost, err := s.verifyIdentity(ctx)
	if err != nil {
		s.reaper.stop()
		return nil, err
	}
	s.ids.stampAfterCrash(ctx)
	if err := s.recover(ctx); err != nil {
		s.reaper.stop()
		s.ids.stop()
		return nil, fmt.Errorf("recover: %w", err)
	}
	if err := s.renewBases(ctx, lost); err != nil {
		s.reaper.stop()
		s.ids.stop()
		return nil, err
	}
	watching, unwatch := context.WithCancel(context.WithoutCancel(ctx))
	s.unwatch = unwatch
	s.underway.Go(func() { s.watch(watching) })
	s.underway.Go(func() { s.ids.time.watch(watching) })
	s.underway.Go(func() { s.watchServed(watching) })
	return s, nil
}

// Close stops the background work and closes the store. The volumes of active snapshots stay active, so
// containers keep running. Each of its steps waits a limited time (closeWait, sparesStop, checkpointWait)
// for operations that are stuck in the kernel; the next start recovers from these.
func (s *Snapshotter) Close() error {
	s.closeOnce.Do(func() {
		s.unwatch()
		s.spares.stop()
		s.reaper.stop() // before deleteCopies: a running discard would delay theirs
		s.deleteCopies()
		waitAtMost(&s.underway, closeWait)
		s.checkpointUnpacks()
		s.storeWritesLostAtClose()
		s.ids.stop()
		s.closeErr = s.store.Close()
	})
	return s.closeErr
}
