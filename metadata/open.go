package metadata

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/thinsnap/thinsnap/metadata/boltfile"
)

// defaultLockTimeout is long enough for a daemon that is ending.
const defaultLockTimeout = 2 * time.Second

// lockPoll is the time between two attempts to lock the file.
const lockPoll = 10 * time.Millisecond

// Options configure Open.
type Options struct {
	// LockTimeout is the longest wait for another process to close the file; 0 is 2 seconds.
	LockTimeout time.Duration

	// ReadOnly opens the store for reading. Several processes can read a store, but none while
	// another one has it open for writing.
	ReadOnly bool
}

// Open opens the store in a file. Unless ReadOnly is set, it creates a missing file with mode 0600.
// It does not follow a symbolic link (ELOOP).
//
// It fails with ErrLocked, ErrNewer, ErrCorrupt or an error of the file system. The first three
// leave the file unchanged. Its cost does not depend on the number of snapshots.
func Open(path string, o Options) (*Store, error) {
	if o.LockTimeout == 0 {
		o.LockTimeout = defaultLockTimeout
	}
	if !o.ReadOnly {
		if err := create(path); err != nil {
			return nil, fmt.Errorf("create metadata store %s: %w", path, err)
		}
	}
	s := &Store{path: path, readOnly: o.ReadOnly, exclusive: make(lock, 1), commitTx: commitSafely}
	if err := s.open(o); err != nil {
		return nil, fmt.Errorf("open metadata store %s: %w", path, err)
	}
	if !o.ReadOnly {
		removeTemporary(path)
		s.writer.start(s.process)
	}
	return s, nil
}

func (s *Store) open(o Options) (err error) {
	var file *os.File
	// bbolt panics on a damaged file, and the processor faults in the map of a truncated file.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	// checkOpened and inspect check the pages that Open needs; this is for damage that they miss.
	defer func() {
		if p := recover(); boltfile.IsFault(p) {
			err = pageError(p)
		} else if p != nil {
			err = fmt.Errorf("%w: %v", ErrCorrupt, p)
		}
		if err != nil && s.db != nil {
			err = errors.Join(err, s.db.Close())
		}
		if err != nil && file != nil {
			boltfile.Abandon(file)
		}
	}()
	s.db, err = bolt.Open(s.path, 0o600, boltOptions(o, &file))
	if err != nil {
		return openError(err)
	}
	id, err := s.inspect(file)
	if err != nil {
		return err
	}
	s.file = file
	if s.readOnly {
		s.gate.durable.Store(math.MaxInt64)
		return nil
	}
	if err := s.resyncMeta(file, id); err != nil {
		return err
	}
	s.gate.durable.Store(int64(id))
	return nil
}

// boltOptions returns bbolt's options, which store the opened file in file.
//
// The free list is kept in the file: without it (NoFreelistSync), each start and each failed commit
// walks the whole tree. With 100,000 snapshots that takes 30 ms, or a second from the disk; reading
// the list takes 0.05 and 0.5 ms. Writing it mostly costs one page per commit.
//
// The array, unlike the hash map, gives out the lowest pages first, so more pages of a commit are
// adjacent. The hash map causes up to 50 % more disk writes, also with a list of 16,000 pages, as
// after the removal of most snapshots.
//
// Statistics are unused, and would cost readers a lock.
func boltOptions(o Options, file **os.File) *bolt.Options {
	return &bolt.Options{
		Timeout:         o.LockTimeout,
		ReadOnly:        o.ReadOnly,
		FreelistType:    bolt.FreelistArrayType,
		PreLoadFreelist: true,
		NoStatistics:    true,
		// This is address space, not memory. A store that grows up to this size does not wait for
		// its readers.
		InitialMmapSize: 256 << 20,
		OpenFile: func(path string, flag int, mode os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(path, flag&^os.O_CREATE|syscall.O_NOFOLLOW, mode)
			if err != nil {
				return nil, err
			}
			*file = f
			info, err := f.Stat()
			switch {
			case err != nil:
				return nil, err
			case !info.Mode().IsRegular():
				return nil, fmt.Errorf("it is not a regular file: %w", ErrCorrupt)
			case info.Size() == 0:
				return nil, fmt.Errorf("it is empty: %w", ErrCorrupt) // bbolt would create a store
			}
			// bbolt locks it again, without effect.
			if err := lockFile(f, o.ReadOnly, o.LockTimeout); err != nil {
				return nil, err
			}
			return f, checkOpened(f)
		},
	}
}

// lockFile locks the file as bbolt does.
func lockFile(f *os.File, shared bool, timeout time.Duration) error {
	how := syscall.LOCK_EX
	if shared {
		how = syscall.LOCK_SH
	}
	for deadline := time.Now().Add(timeout); ; time.Sleep(lockPoll) {
		err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		if time.Now().After(deadline) {
			return ErrLocked
		}
	}
}

// checkOpened checks the pages that Open reads: the free list, and the buckets v1 and meta.
func checkOpened(f *os.File) error {
	info, err := f.Stat() // under the lock: the file may have grown
	if err != nil {
		return err
	}
	return corrupt(boltfile.Check(f, info.Size(), func(path []string) bool {
		return len(path) == 1 || len(path) == 2 && path[1] == "meta"
	}))
}

func openError(err error) error {
	var (
		path  *fs.PathError
		errno syscall.Errno
	)
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return ErrLocked
	case errors.Is(err, ErrLocked), errors.Is(err, ErrCorrupt), errors.Is(err, boltfile.ErrUnreadable),
		errors.As(err, &path), errors.As(err, &errno):
		return err
	default:
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
}

// resyncMeta writes the meta page of the last transaction again, unchanged, and syncs. If a process
// died or a disk failed between the write and the sync of that page, it is only in the kernel's
// cache, perhaps no longer dirty. It must be on the disk before the next transaction reuses pages
// of the one before.
func (s *Store) resyncMeta(file *os.File, id int) error {
	page := make([]byte, s.db.Info().PageSize)
	at := int64(id%2) * int64(len(page))
	if _, err := file.ReadAt(page, at); err != nil {
		return err
	}
	if _, err := file.WriteAt(page, at); err != nil {
		return err
	}
	return errors.Join(s.db.Sync(), syncDirectory(s.path))
}
