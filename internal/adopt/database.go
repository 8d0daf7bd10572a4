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
	// savedSuffix ends the name that a database of the built-in has while a text is in its place.
	savedSuffix = ".adopted"

	// textBegin begins such a text, and tells it from a database.
	textBegin = "This is not the database any more.\n"

	// lockTimeout is long enough for a process that is just ending.
	lockTimeout = time.Second

	// lockPoll is the time between two tries.
	lockPoll = 10 * time.Millisecond
)

// A held database is open and locked for reading: other processes may read it, and containerd waits
// for the lock, or fails.
type held struct {
	path string
	file *os.File
}

// hold holds a database.
func hold(path string) (*held, error) {
	// Opening a named pipe waits for its writer without O_NONBLOCK.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, explain("open", path, err)
	}
	err = patiently(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) })
	if err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%s: another process has it open: stop containerd: %w", path, errdefs.ErrFailedPrecondition)
		}
		return nil, errors.Join(err, f.Close())
	}
	return &held{path, f}, nil
}

// patiently calls try until it does not fail with EWOULDBLOCK, for a second.
func patiently(try func() error) error {
	for deadline := time.Now().Add(lockTimeout); ; time.Sleep(lockPoll) {
		if err := try(); !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			return err
		}
	}
}

// release ends hold.
func (h *held) release() error {
	if h == nil || h.file == nil {
		return nil
	}
	f := h.file
	h.file = nil
	return f.Close()
}

// block puts a text in the place of the database, which gets the name with savedSuffix in the same
// directory, as the same file: owner, mode and security label stay. At no time is there no file:
// containerd would make a database that hands out ids which are in use.
//
// A containerd that opened the database before, and waits for its lock, would use it from now on. That
// is errdefs.ErrFailedPrecondition, and block undoes what it did.
func (h *held) block(text string) error {
	info, err := h.file.Stat()
	if err != nil {
		return explain("block", h.path, err)
	}
	saved := h.path + savedSuffix
	linked, err := sameFile(h.path, saved) // by a killed run
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
	if err := create(h.path, info.Mode().Perm(), func(f *os.File) error {
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

// requireAlone fails if another process has the database open. bbolt polls for its lock, so that the
// kernel does not know who waits for it.
func (h *held) requireAlone() error {
	fd := h.file.Fd()
	err := patiently(func() error {
		// It is refused while the file has another opener, of any process (fcntl(2), F_SETLEASE).
		_, err := unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_WRLCK)
		return err
	})
	if err == nil {
		_, err = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK)
		return explain("release the lease of", h.path, err)
	}
	opener := "another process"
	if !errors.Is(err, unix.EAGAIN) {
		// The file system has no leases.
		if opener, err = openerOf(h.file); err != nil || opener == "" {
			return explain("look who has opened", h.path, err)
		}
	}
	return fmt.Errorf("%s: %s opened it meanwhile: stop containerd, and try again: %w", h.path, opener,
		errdefs.ErrFailedPrecondition)
}

// openerOf returns a process that has a file open, "" if it finds none but this one.
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

// isBlocked reports whether a text is in the place of a database. It is not if nothing is there.
func isBlocked(path string) (bool, error) {
	text, err := textAt(path)
	return text != "", err
}

// mostText is more than a text has, in bytes.
const mostText = 64 << 10

// textAt returns the text in the place of a database, "" if there is none.
func textAt(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", explain("open", path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, mostText))
	if err != nil || !bytes.HasPrefix(b, []byte(textBegin)) {
		return "", explain("read", path, err)
	}
	return string(b), nil
}

// requireDatabase fails if a database is neither in its place nor saved. Without a file in its place,
// containerd would make a database that hands out ids which are in use.
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
	return gone(path)
}

func gone(path string) error {
	return fmt.Errorf("%s, the database that was at %s, is gone: put the copy in its place that adopt/backup in "+
		"thinsnap's root has: %w", path+savedSuffix, path, errdefs.ErrDataLoss)
}

// unblock undoes block, whatever part of it was done.
func unblock(path string) error {
	saved := path + savedSuffix
	if err := remove(path + newSuffix); err != nil {
		return explain("remove", path+newSuffix, err)
	}
	isThere, err := exists(saved)
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
	case !isThere && (blocked || !found):
		return gone(path)
	case !isThere:
	case same:
		err = os.Remove(saved)
	case blocked, !found:
		err = os.Rename(saved, path)
	default:
		return fmt.Errorf("%s is not what thinsnap put in the place of %s: move one of them away: %w", path, saved,
			errdefs.ErrFailedPrecondition)
	}
	if err == nil {
		err = syncDirectory(path)
	}
	return explain("restore", path, err)
}
