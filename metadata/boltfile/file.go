package boltfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

var (
	// ErrDamaged is returned when a file is not one of bbolt's, or a page of it is damaged.
	ErrDamaged = errors.New("not an intact bbolt file")

	// ErrLocked is returned when another process has the file open for longer than a second.
	ErrLocked = errors.New("another process has it open")

	// ErrUnreadable is returned when a page cannot be read: its disk fails, or the file was
	// truncated meanwhile.
	ErrUnreadable = errors.New("cannot read a page of it")
)

const (
	// lockTimeout is long enough for a process that is just ending.
	lockTimeout = time.Second

	// lockPoll is the time between two tries to lock the file.
	lockPoll = 10 * time.Millisecond
)

// View calls fn in a read-only transaction on the file. Other processes can read it meanwhile, but
// not write it. It does not change the file, and does not follow a symbolic link (ELOOP).
//
// It fails with ErrDamaged, ErrLocked or ErrUnreadable, the error of fn, or one of the file system.
// Before fn, it reads all pages in use.
func View(path string, fn func(*bolt.Tx) error) error {
	return with(path, true, func(db *bolt.DB) error { return db.View(fn) })
}

// Update calls fn in a transaction on the file, and commits it unless fn fails. It returns when the
// file is on the disk. No other process can open the file meanwhile. Otherwise it is as View.
//
// The file has no list of its free pages afterwards, as the files of containerd have none
// (plugins/metadata/plugin.go). bbolt reads it either way.
func Update(path string, fn func(*bolt.Tx) error) error {
	return with(path, false, func(db *bolt.DB) error { return db.Update(fn) })
}

func with(path string, readOnly bool, fn func(*bolt.DB) error) error {
	var (
		db   *bolt.DB
		file *os.File
	)
	page, err := Guard(func() (err error) {
		db, err = bolt.Open(path, 0o600, options(readOnly, &file))
		if err != nil {
			return openError(err)
		}
		return fn(db)
	})
	switch {
	case page != nil && IsFault(page):
		err = fmt.Errorf("%w: its disk fails, or it was truncated (see dmesg)", ErrUnreadable)
	case page != nil:
		err = fmt.Errorf("%w: %v", ErrDamaged, page)
	case db != nil:
		return errors.Join(WithErrno(err), db.Close())
	}
	// bbolt may hold its own locks after a panic, which Close would wait for.
	if file != nil {
		Abandon(file)
	}
	return err
}

// options returns bbolt's options, which leave the opened file in file.
func options(readOnly bool, file **os.File) *bolt.Options {
	return &bolt.Options{
		Timeout:        lockTimeout,
		ReadOnly:       readOnly,
		NoFreelistSync: true,
		NoStatistics:   true,
		OpenFile: func(path string, flag int, mode os.FileMode) (*os.File, error) {
			// Opening a named pipe waits for its writer without O_NONBLOCK.
			f, err := os.OpenFile(path, flag&^os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, mode)
			if err != nil {
				return nil, err
			}
			*file = f
			return f, check(f, readOnly)
		},
	}
}

// check locks the file and checks its pages.
func check(f *os.File, readOnly bool) error {
	if info, err := f.Stat(); err != nil {
		return err
	} else if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: not a regular file", ErrDamaged)
	}
	// bbolt locks it again, which changes nothing.
	if err := lock(f, readOnly); err != nil {
		return err
	}
	info, err := f.Stat() // under the lock: the file may have grown
	if err != nil {
		return err
	}
	if info.Size() == 0 {
		return fmt.Errorf("%w: it is empty", ErrDamaged) // bbolt would create a database
	}
	return Check(f, info.Size(), func([]string) bool { return true })
}

// lock locks the file as bbolt does.
func lock(f *os.File, shared bool) error {
	how := syscall.LOCK_EX
	if shared {
		how = syscall.LOCK_SH
	}
	for deadline := time.Now().Add(lockTimeout); ; time.Sleep(lockPoll) {
		err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		if time.Now().After(deadline) {
			return ErrLocked
		}
	}
}

func openError(err error) error {
	var (
		path  *fs.PathError
		errno syscall.Errno
	)
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return ErrLocked
	case errors.Is(err, ErrLocked), errors.Is(err, ErrDamaged), errors.As(err, &path), errors.As(err, &errno):
		return err
	default:
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
}

// Abandon closes a file that bbolt may have closed already. If bbolt panicked instead, its map
// stays, and with it the lock unless it is released here.
func Abandon(file *os.File) {
	conn, err := file.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) { _ = syscall.Flock(int(fd), syscall.LOCK_UN) })
	_ = file.Close()
}
