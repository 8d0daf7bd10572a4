// Package snapshotter implements containerd's snapshots.Snapshotter on a thin
// pool: every layer and every container is a thin volume, and every child a
// snapshot of its parent.
//
// It holds the policy. What a key stands for is in the store (package metadata),
// which is the truth; the kernel's side is done by a Pool. The order of the two
// is what makes a crash harmless:
//
//   - Prepare makes the volume and then the record, beside which it activates it. A crash in between leaves a
//     volume whose id lies in an open lease and belongs to nobody; it is deleted
//     at the next start.
//   - Commit puts the content on stable storage and then changes the record.
//   - Remove moves the volume's id to the trash together with the record, and
//     the volume itself is deleted in the background, now or after a restart.
package snapshotter

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter/calllog"
)

// Pool is what a Snapshotter needs of a thin pool; *pool.Pool is one. The
// errors are those of packages thin and devmapper.
type Pool interface {
	CreateThin(ctx context.Context, id thin.ID) error
	CreateSnap(ctx context.Context, id, origin thin.ID) error
	Delete(ctx context.Context, id thin.ID) error
	Volumes(ctx context.Context, first, last thin.ID) (map[thin.ID]bool, error)
	SetTransactionID(ctx context.Context, from, to uint64) error
	Status(ctx context.Context) (pool.Status, error)
	RecentStatus(ctx context.Context, age time.Duration) (pool.Status, error)
	VolumePath(id thin.ID) string

	Activate(ctx context.Context, id thin.ID, bytes uint64, readOnly bool) (pool.Volume, error)
	Deactivate(ctx context.Context, id thin.ID) error
	Lookup(ctx context.Context, id thin.ID) (pool.Volume, error)
	Active(ctx context.Context) ([]pool.Volume, error)
	Suspend(ctx context.Context, id thin.ID) error
	Resume(id thin.ID) error
	Flush(ctx context.Context, id thin.ID) error
	Discard(ctx context.Context, id thin.ID) error
	Mapped(ctx context.Context, id thin.ID) (uint64, error)
}

// Filesystem is what a Snapshotter needs to know of file systems; filesystem.Host
// is the real one.
type Filesystem interface {
	// Make makes an empty file system on a device that reads as zeroes.
	Make(ctx context.Context, dev, typ string, options []string) error
	// Identify reads the superblock.
	Identify(dev string) (filesystem.Superblock, error)
	// Grow grows the file system to bytes.
	Grow(dev, typ string, bytes uint64) error
	// Recover replays the journal.
	Recover(dev, typ string) error
	// Mounted tells whether the file system is mounted.
	Mounted(dev, typ string) bool
	// Trim discards what a mounted one does not use of length bytes at start; see
	// filesystem.Trim.
	Trim(dev, typ string, start, length uint64) (trimmed uint64, err error)
	// Share mounts it at dir as well, and Unshare undoes that; both can be repeated.
	Share(dev, typ, dir string) error
	Unshare(dir string) error
}

// Config is what an operator decides about snapshots.
type Config struct {
	// Filesystem is the type of the file systems that are made: filesystem.Ext4
	// or filesystem.XFS. Snapshots keep the type of their parent.
	Filesystem string
	// BaseBytes is the size of a snapshot that has no parent and no size of its
	// own; a multiple of 4096.
	BaseBytes uint64
	// MkfsOptions are given to mkfs.
	MkfsOptions []string
	// MountOptions are part of every mount that is returned.
	MountOptions []string
	// MountDir is where mounted snapshots are mounted once more, to be bound from
	// there; an absolute path.
	MountDir string
	// MinFreePercent of the pool's data, and of its metadata, must be free for a
	// new snapshot to be made; 0 to 100, 0 for no limit.
	MinFreePercent uint64
	// Spares is how many volumes are kept ready at most for snapshots that nobody
	// has asked for yet; 0 for none.
	Spares int
	// Discard gives a removed volume's space back to what the pool lies on.
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
	bases     keyLock[baseKey]

	// underway are the operations that have begun.
	underway sync.WaitGroup
	// unwatch ends the watching of the pool.
	unwatch context.CancelFunc

	closeOnce sync.Once
	closeErr  error
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New returns a snapshotter over a store and the pool that belongs to it, and
// brings the two into line: what a crash left half done is finished or undone in
// the background. It takes over the store, which Close closes, but not the pool.
//
// It returns errdefs.ErrFailedPrecondition, and has changed nothing, if the pool
// is not the one that the store remembers.
func New(ctx context.Context, config Config, store *metadata.Store, p Pool, fs Filesystem) (*Snapshotter, error) {
	s := &Snapshotter{
		config:  config,
		store:   store,
		pool:    p,
		fs:      fs,
		volumes: newVolumes(p),
	}
	s.ids = newIDSource(store, p)
	s.leftovers = &leftovers{pool: p}
	s.reaper = newReaper(s.settle)
	s.spares = newSpares(config.Spares, s.newSpare, s.removeSpare)
	if err := s.verifyPool(ctx); err != nil {
		return nil, err
	}
	if err := s.verifyBases(ctx); err != nil {
		s.reaper.stop()
		return nil, err
	}
	if err := s.recover(ctx); err != nil {
		s.reaper.stop()
		return nil, fmt.Errorf("bring the store and the pool into line: %w", err)
	}
	if _, err := s.base(ctx, baseKey{config.Filesystem, config.BaseBytes}); err != nil {
		s.reaper.stop()
		return nil, err
	}
	watching, unwatch := context.WithCancel(context.WithoutCancel(ctx))
	s.unwatch = unwatch
	s.underway.Go(func() { s.watch(watching) })
	return s, nil
}

// Close stops the background work and closes the store. What snapshots stand for
// stays active: containers go on running on their devices. What is stuck in the
// kernel is waited for no longer than closeWait, four times at most; it is made good
// at the next start.
func (s *Snapshotter) Close() error {
	s.closeOnce.Do(func() {
		s.unwatch()
		s.spares.stop()
		s.reaper.stop()
		wait(&s.underway, closeWait)
		s.ids.stop()
		s.closeErr = s.store.Close()
	})
	return s.closeErr
}

// working says in the log of the call, and in its error, which volume it is about.
func (s *Snapshotter) working(ctx context.Context, id thin.ID) {
	calllog.SetDevice(ctx, s.pool.VolumePath(id))
}

// now is the time as it is stored: containerd compares what it gets with what it
// was given to the nanosecond, and in UTC.
func now() time.Time { return time.Now().UTC() }
