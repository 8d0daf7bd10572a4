package fshistory

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"

	"golang.org/x/sys/unix"
)

// operation is one kind of change.
type operation struct {
	name       string
	weight     int    // how often it is chosen, relative to others
	image      int    // a factor of weight in an image; 0: never
	filesystem string // the only type that supports it; "": all
	choose     func(*Generator) (Op, bool)
	apply      func(*Run, Op) error
}

func operations() []operation {
	return slices.Concat(nameOperations(), contentOperations(), rangeOperations(), attributeOperations())
}

// Run applies scripts to a directory, mostly a mount point. It keeps files open and pages mapped,
// like processes do, until [Run.Close].
type Run struct {
	root  string
	apply map[string]func(*Run, Op) error
	held  []func() error
	// Failed has the number of failed changes, by name and errno. Changes fail if the file system
	// is full, or if an earlier change that they depend on was removed from the script.
	Failed map[string]int
	// Done has the number of successful changes, by name.
	Done map[string]int
}

// NewRun returns a run below root.
func NewRun(root string) *Run {
	r := &Run{root: root, apply: map[string]func(*Run, Op) error{wholeTimes: (*Run).wholeTimes},
		Failed: map[string]int{}, Done: map[string]int{}}
	for _, o := range operations() {
		r.apply[o.name] = o.apply
	}
	return r
}

// Apply makes the changes of a script. It skips and counts the changes that fail.
func (r *Run) Apply(s Script) error {
	for _, o := range s {
		apply, known := r.apply[o.Do]
		if !known {
			return fmt.Errorf("no such change: %v", o)
		}
		var errno unix.Errno
		switch err := r.guarded(apply, o); {
		case err == nil:
			r.Done[o.Do]++
		case errors.As(err, &errno) && errno != unix.EIO:
			r.Failed[fmt.Sprintf("%s: %s", o.Do, unix.ErrnoName(errno))]++
		default:
			return fmt.Errorf("%v: %w", o, err)
		}
	}
	return nil
}

// guarded turns a fault of a mapped page, for which a full file system has no block, into an error.
func (r *Run) guarded(apply func(*Run, Op) error, o Op) (err error) {
	before := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(before)
		if fault := recover(); fault != nil {
			if _, ok := fault.(interface{ Addr() uintptr }); !ok {
				panic(fault)
			}
			err = unix.ENOSPC
		}
	}()
	return apply(r, o)
}

// Close closes files and unmaps pages.
func (r *Run) Close() error {
	var errs []error
	for _, release := range r.held {
		errs = append(errs, release())
	}
	r.held = nil
	return errors.Join(errs...)
}

func (r *Run) path(p string) string { return filepath.Join(r.root, p) }

// open opens a file. It does not follow a symbolic link.
func (r *Run) open(p string, flags int) (*os.File, error) {
	return os.OpenFile(r.path(p), flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
}

// onFile calls f with an open file, and its size.
func (r *Run) onFile(p string, flags int, f func(file *os.File, size int64) error) (err error) {
	file, err := r.open(p, flags)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	// A write to a pipe without a reader would never end.
	if info.Mode()&(os.ModeNamedPipe|os.ModeDevice) != 0 {
		return unix.ESPIPE
	}
	return f(file, info.Size())
}

// keepingTimes calls f, and restores the file's times of access and modification.
func (r *Run) keepingTimes(p string, f func() error) error {
	var st unix.Stat_t
	if err := unix.Lstat(r.path(p), &st); err != nil {
		return err
	}
	return errors.Join(f(), unix.UtimesNanoAt(unix.AT_FDCWD, r.path(p), []unix.Timespec{st.Atim, st.Mtim},
		unix.AT_SYMLINK_NOFOLLOW))
}

// content returns the bytes for a seed. For seed 0 they are zeros.
func content(seed uint64, length int64) []byte {
	b := make([]byte, length)
	if seed == 0 {
		return b
	}
	chacha := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24), byte(seed >> 32)})
	_, _ = chacha.Read(b)
	return b
}
