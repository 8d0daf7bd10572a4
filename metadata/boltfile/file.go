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
	// ErrDamaged is returned when a file is not a bbolt file, or has a damaged page.
	ErrDamaged = errors.New("not an intact bbolt file")

	// ErrLocked is returned when another process has the file open for longer than a second.
	ErrLocked = errors.New("another process has it open")

	// ErrUnreadable is returned when a page cannot be read: the disk fails, or the file was
	// truncated meanwhile.
	ErrUnreadable = errors.New("cannot read a page of it")
)

const (
	// lockTimeout is long enough for a process that is ending.
	lockTimeout = time.Second

	// lockPoll is the time between two attempts to lock the file.
	lockPoll = 10 * time.Millisecond
)

// View calls fn in a read-only transaction on the file. It does not change the file, and does not
// follow a symbolic link (ELOOP). Meanwhile other processes can read the file, but not write it.
//
// It fails with ErrDamaged, ErrLocked or ErrUnreadable, the error of fn, or one of the file system.
// It reads all used pages before it calls fn.
func View(path string, fn func(*bolt.Tx) error) error {
	return withDB(path, true, func(db *bolt.DB) error { return db.View(fn) })
}

// Update calls fn in a transaction on the file, and commits it unless fn fails. When it returns
// nil, the changes are on stable storage. Meanwhile no other process can open the file. Otherwise it
// is like View.
//
// It writes no list of free pages: containerd's files have none either
// (plugins/metadata/plugin.go), and bbolt reads both kinds.
func Update(path string, fn func(*bolt.Tx) error) error {
	return withDB(path, false, func(db *bolt.DB) error { return db.Update(fn) })
}

func withDB(path string, readOnly bool, fn func(*bolt.DB) error) error {
	var (
		db   *bolt.DB
		file *os.File
	)
	cause, err := Guard(func() (err error) {
		db, err = bolt.Open(path, 0o600, options(readOnly, &file))
		if err != nil {
			return openError(err)
		}
		return fn(db)
	})
	switch {
	case cause != nil && IsFault(cause):
		err = fmt.Errorf("%w: its disk fails, or it was truncated (see dmesg)", ErrUnreadable)
	case cause != nil:
		err = fmt.Errorf("%w: %v", ErrDamaged, cause)
	case db != nil:
		return errors.Join(WithErrno(err), db.Close())
	}
	// After a panic bbolt may hold its locks, and Close would wait for them.
	if file != nil {
		Abandon(file)
	}
	return err
}

// options returns bbolt's options, which store the opened file in file.
func options(readOnly bool, file **os.File) *bolt.Options {
	return &bolt.Options{
		Timeout:        lockTimeout,
		ReadOnly:       readOnly,
		NoFreelistSync: true,
		NoStatistics:   true,
		OpenFile: func(path string, flag int, mode os.FileMode) (*os.File, error) {
			// Without O_NONBLOCK, opening a named pipe waits for a writer.
			f, err := os.OpenFile(path, flag&^os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, mode)
			if err != nil {
				return nil, err
			}
			*file = f
			return f, lockAndCheck(f, readOnly)
		},
	}
}

// lockAndCheck locks the file and checks its pages.
func lockAndCheck(f *os.File, readOnly bool) error {
	if info, err := f.Stat(); err != nil {
		return err
	} else if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: not a regular file", ErrDamaged)
	}
	// bbolt locks it again, without effect.
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
	case errors.Is(err, ErrLocked), errors.Is(err, ErrDamaged), errors.Is(err, ErrUnreadable),
		errors.As(err, &path), errors.As(err, &errno):
		return err
	default:
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
}

// Abandon closes a file that bbolt may have closed already. After a panic bbolt's map keeps the
// file open, so only an explicit unlock releases the lock.
func Abandon(file *os.File) {
	conn, err := file.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) { _ = syscall.Flock(int(fd), syscall.LOCK_UN) })
	_ = file.Close()
}
