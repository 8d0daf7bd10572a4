package repair

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrNoBackup is returned when no repair has left a backup.
	ErrNoBackup = errors.New("no repair has left a backup")
	// ErrUsedSince is returned when the pool was used since the metadata was replaced: with the old metadata, its volumes
	// would have blocks in which others have written since.
	ErrUsedSince = errors.New("the pool was used since then, and blocks of the volumes that the backup knows may hold what others have written")
)

const (
	backupInfix = ".backup-"
	stamp       = "20060102T150405Z"
	// superblockBytes is the first block, which is another one after each change of a pool's metadata.
	superblockBytes = 4096
)

// backupPattern is what a backup's name ends in: when it was made, and the tag of what took its place.
func backupPattern() *regexp.Regexp { return regexp.MustCompile(`^(\d{8}T\d{6}Z)-([0-9a-f]{8})$`) }

// Backups returns the files with what was there before each repair of file, oldest first.
func Backups(file string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(file))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	prefix, pattern := filepath.Base(file)+backupInfix, backupPattern()
	var names []string
	for _, entry := range entries { // in the order of the names
		if rest, ok := strings.CutPrefix(entry.Name(), prefix); ok && pattern.MatchString(rest) {
			names = append(names, filepath.Join(filepath.Dir(file), entry.Name()))
		}
	}
	return names, nil
}

// RemoveAll removes what repairs of file have left beside it.
func RemoveAll(file string) error {
	backups, err := Backups(file)
	for _, path := range slices.Concat(backups, []string{file + newSuffix, file + copySuffix}) {
		err = errors.Join(err, remove(path))
	}
	return err
}

// backupName is how the name of the next backup begins. It comes after all that there are, whatever the clock says.
func (m Metadata) backupName(now time.Time) (string, error) {
	backups, err := Backups(m.File)
	if err != nil {
		return "", err
	}
	now = now.UTC().Truncate(time.Second)
	if len(backups) > 0 {
		last := strings.TrimPrefix(backups[len(backups)-1], m.File+backupInfix)
		if made, err := time.Parse(stamp, last[:len(stamp)]); err == nil && !now.After(made) {
			now = made.Add(time.Second)
		}
	}
	return m.File + backupInfix + now.Format(stamp), nil
}

// Undo puts the last backup back, and keeps what is there now as another one: a second Undo undoes the first. It is
// ErrUsedSince, and nothing is changed, when the pool was used since that backup was made, unless lose is set; and
// ErrNoBackup when there is none.
func (m Metadata) Undo(ctx context.Context, lose bool) (restored, kept string, err error) {
	restored, used, err := m.last()
	if err != nil {
		return "", "", fmt.Errorf("undo a repair of %s: %w", m.File, err)
	}
	if used && !lose {
		err = ErrUsedSince
	} else {
		kept, err = m.undo(ctx, restored)
	}
	if err != nil {
		return "", "", fmt.Errorf("put %s back: %w", restored, err)
	}
	return restored, kept, nil
}

// last returns the last backup, and whether the pool was used since something took its place.
func (m Metadata) last() (backup string, used bool, err error) {
	present, err := tagOf(m.File)
	if err != nil {
		return "", false, err
	}
	backups, err := Backups(m.File)
	if err != nil {
		return "", false, err
	}
	for _, backup := range slices.Backward(backups) {
		if strings.HasSuffix(backup, "-"+present) {
			return backup, false, nil
		}
		tag, err := tagOf(backup)
		if err != nil {
			return "", false, err
		}
		if tag != present { // else nothing took its place: whoever was about to was interrupted
			return backup, true, nil
		}
	}
	return "", false, ErrNoBackup
}

func (m Metadata) undo(ctx context.Context, backup string) (kept string, err error) {
	name, err := m.backupName(time.Now())
	if err != nil {
		return "", err
	}
	made := m.File + newSuffix
	if err := m.clean(); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, remove(made)) }()
	if err := copySparse(ctx, backup, made); err != nil {
		return "", err
	}
	return m.replace(ctx, made, name)
}

// tagOf tells metadata from what it becomes with the next change.
func tagOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	superblock, err := io.ReadAll(io.LimitReader(f, superblockBytes))
	if err != nil {
		return "", fmt.Errorf("read the superblock in %s: %w", path, err)
	}
	return fmt.Sprintf("%08x", crc32.ChecksumIEEE(superblock)), nil
}

// create makes a file for root's eyes, which is not there yet.
func create(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
}

// copySparse copies a file to one that is not there yet, holes as holes.
func copySparse(ctx context.Context, from, to string) (err error) {
	source, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return err
	}
	target, err := create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	if err := target.Truncate(info.Size()); err != nil {
		return err
	}
	for at := int64(0); at < info.Size(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		start, err := unix.Seek(int(source.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // nothing but a hole follows
		}
		if err != nil {
			return &os.PathError{Op: "seek", Path: from, Err: err}
		}
		if at, err = unix.Seek(int(source.Fd()), start, unix.SEEK_HOLE); err != nil {
			return &os.PathError{Op: "seek", Path: from, Err: err}
		}
		if _, err := io.Copy(io.NewOffsetWriter(target, start), io.NewSectionReader(source, start, at-start)); err != nil {
			return fmt.Errorf("copy %s to %s: %w", from, to, err)
		}
	}
	return nil
}

// syncFile puts a file, or the names in a directory, on stable storage.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
