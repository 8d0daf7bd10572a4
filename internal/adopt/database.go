package adopt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// savedSuffix is the suffix of a database of the built-in while a text is in its place.
	savedSuffix = ".adopted"

	// textBegin is the start of such a text, and distinguishes it from a database.
	textBegin = "This is not the database any more.\n"

	// lockTimeout is long enough for a process that is about to end.
	lockTimeout = time.Second

	// lockPoll is the time between two attempts.
	lockPoll = 10 * time.Millisecond
)

// A held database is open and locked for reading. Other processes can read it. containerd waits for
// the lock, or fails.
type held struct {
	path string
	file *os.File
}

func hold(path string) (*held, error) {
	// Without O_NONBLOCK, opening a named pipe waits for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, explain("open", path, err)
	}
	err = retryBriefly(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) })
	if err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%s: another process has it open: stop containerd: %w", path, errdefs.ErrFailedPrecondition)
		}
		return nil, errors.Join(err, f.Close())
	}
	return &held{path, f}, nil
}

// retryBriefly repeats try for a second while it fails with EWOULDBLOCK.
func retryBriefly(try func() error) error {
	for deadline := time.Now().Add(lockTimeout); ; time.Sleep(lockPoll) {
		if err := try(); !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			return err
		}
	}
}

func (h *held) release() error {
	if h == nil || h.file == nil {
		return nil
	}
	f := h.file
	h.file = nil
	return f.Close()
}

// block replaces the database by a text, and gives the database the name with savedSuffix. It
// remains the same file, with its owner, mode and security label. At no time is the name free:
// containerd would create a database and allocate ids that are in use.
//
// If containerd opened the database earlier and waits for its lock, it would use it after the
// rename. Then block undoes its changes and fails with errdefs.ErrFailedPrecondition.
func (h *held) block(text string) error {
	info, err := h.file.Stat()
	if err != nil {
		return explain("block", h.path, err)
	}
	saved := h.path + savedSuffix
	linked, err := sameFile(h.path, saved) // left by a killed run
	if err == nil && !linked {
		err = os.Link(h.path, saved)
	}
	if err == nil {
		err = syncDirectory(saved)
	}
	if err != nil {
		return explain("block", h.path, err)
	}
	// gofail: var adoptAfterLink struct{}
	if err := replaceFile(h.path, info.Mode().Perm(), func(f *os.File) error {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
				return err
			}
		}
		_, err := io.WriteString(f, textBegin+text)
		return err
	}); err != nil {
		return err
	}
	// gofail: var adoptAfterText struct{}
	if err := h.requireAlone(); err != nil {
		return errors.Join(err, unblock(h.path))
	}
	return nil
}

// requireAlone fails if another process has the database open. bbolt polls for its lock, so the
// kernel has no list of the waiting processes.
func (h *held) requireAlone() error {
	fd := h.file.Fd()
	err := retryBriefly(func() error {
		// The kernel refuses a write lease while any process has the file open too (fcntl(2),
		// F_SETLEASE).
		_, err := unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_WRLCK)
		return err
	})
	if err == nil {
		_, err = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK)
		return explain("release the lease of", h.path, err)
	}
	opener := "another process"
	if !errors.Is(err, unix.EAGAIN) {
		// The file system does not support leases.
		if opener, err = openerOf(h.file); err != nil || opener == "" {
			return explain("find the processes that have opened", h.path, err)
		}
	}
	return fmt.Errorf("%s: %s has opened it: stop containerd, and try again: %w", h.path, opener,
		errdefs.ErrFailedPrecondition)
}

// openerOf returns another process that has a file open, or "".
func openerOf(f *os.File) (string, error) {
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	descriptors, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return "", err
	}
	self := fmt.Sprintf("/proc/%d/fd", os.Getpid())
	for _, d := range descriptors {
		if other, err := os.Stat(d); err == nil && os.SameFile(info, other) && filepath.Dir(d) != self {
			return "process " + filepath.Base(filepath.Dir(filepath.Dir(d))), nil
		}
	}
	return "", nil
}

// isBlocked returns true if a text is in the place of a database, and false if path does not exist.
func isBlocked(path string) (bool, error) {
	text, err := textAt(path)
	return text != "", err
}

// maxTextBytes is larger than any text, in bytes.
const maxTextBytes = 64 << 10

// textAt returns the text in the place of a database, or "".
func textAt(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", explain("open", path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxTextBytes))
	if err != nil || !bytes.HasPrefix(b, []byte(textBegin)) {
		return "", explain("read", path, err)
	}
	return string(b), nil
}

// requireDatabase fails if a database is neither in its place nor under its saved name. Undo would
// otherwise leave no file, and containerd would create a database and allocate ids that are in use.
func requireDatabase(path string) error {
	for _, p := range []string{path + savedSuffix, path} {
		found, err := exists(p)
		if err != nil {
			return explain("look for", p, err)
		}
		blocked, err := isBlocked(p)
		if err != nil {
			return err
		}
		if found && !blocked {
			return nil
		}
	}
	return missing(path)
}

func missing(path string) error {
	return fmt.Errorf("%s, the database that was at %s, is missing: restore the copy of it in adopt/backup in "+
		"thinsnap's root: %w", path+savedSuffix, path, errdefs.ErrDataLoss)
}

// unblock undoes block, even if block was interrupted.
func unblock(path string) error {
	saved := path + savedSuffix
	if err := remove(path + newSuffix); err != nil {
		return explain("remove", path+newSuffix, err)
	}
	hasSaved, err := exists(saved)
	if err != nil {
		return explain("look for", saved, err)
	}
	blocked, err := isBlocked(path)
	if err != nil {
		return err
	}
	found, err := exists(path)
	if err != nil {
		return explain("look for", path, err)
	}
	same, err := sameFile(path, saved)
	if err != nil {
		return explain("look at", path, err)
	}
	switch {
	case !hasSaved && (blocked || !found):
		return missing(path)
	case !hasSaved:
	case same:
		err = os.Remove(saved)
	case blocked, !found:
		err = os.Rename(saved, path)
	default:
		return fmt.Errorf("%s is not the text that thinsnap put in the place of %s: move one of the two "+
			"files away: %w", path, saved, errdefs.ErrFailedPrecondition)
	}
	if err == nil {
		err = syncDirectory(path)
	}
	return explain("restore", path, err)
}
