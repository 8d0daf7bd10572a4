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
	// ErrNoBackup is returned when the metadata has no backup.
	ErrNoBackup = errors.New("there is no backup of a repair")
	// ErrUsedSince is returned when the pool was used after the repair: other volumes may have
	// overwritten blocks of the volumes in the old metadata.
	ErrUsedSince = errors.New("the pool was used after the repair: blocks of the volumes in the backup may have been " +
		"overwritten by other volumes")
)

const (
	backupInfix = ".backup-"
	timeFormat  = "20060102T150405Z"
	// superblockBytes is the size of the first block, which each commit changes.
	superblockBytes = 4096
)

// backupPattern matches the end of a backup's name: its time, and the tag of the new metadata.
func backupPattern() *regexp.Regexp { return regexp.MustCompile(`^(\d{8}T\d{6}Z)-([0-9a-f]{8})$`) }

// Backups returns the backups of file, oldest first.
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
	for _, entry := range entries { // sorted by name
		if rest, ok := strings.CutPrefix(entry.Name(), prefix); ok && pattern.MatchString(rest) {
			names = append(names, filepath.Join(filepath.Dir(file), entry.Name()))
		}
	}
	return names, nil
}

// RemoveAll removes the backups and the unfinished files of all repairs of file.
func RemoveAll(file string) error {
	backups, err := Backups(file)
	for _, path := range slices.Concat(backups, []string{file + newSuffix, file + copySuffix}) {
		err = errors.Join(err, remove(path))
	}
	return err
}

// backupName returns the next backup's name without the tag. It sorts after all others, even if the
// clock was set back.
func (m Metadata) backupName(now time.Time) (string, error) {
	backups, err := Backups(m.File)
	if err != nil {
		return "", err
	}
	now = now.UTC().Truncate(time.Second)
	if len(backups) > 0 {
		last := strings.TrimPrefix(backups[len(backups)-1], m.File+backupInfix)
		if made, err := time.Parse(timeFormat, last[:len(timeFormat)]); err == nil && !now.After(made) {
			now = made.Add(time.Second)
		}
	}
	return m.File + backupInfix + now.Format(timeFormat), nil
}

// Undo restores the last backup, and backs up the present metadata: a second Undo undoes the first.
// It returns the paths of both backups. If the pool was used after the backup, it returns
// ErrUsedSince with nothing changed, unless lose is set. It returns ErrNoBackup if there is none.
func (m Metadata) Undo(ctx context.Context, lose bool) (restored, backup string, err error) {
	restored, used, err := m.last()
	if err != nil {
		return "", "", fmt.Errorf("undo a repair of %s: %w", m.File, err)
	}
	if used && !lose {
		err = ErrUsedSince
	} else {
		backup, err = m.undo(ctx, restored)
	}
	if err != nil {
		return "", "", fmt.Errorf("restore %s: %w", restored, err)
	}
	return restored, backup, nil
}

// last returns the last backup, and whether the pool was used after it.
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
		if tag != present { // otherwise the repair was killed before the swap
			return backup, true, nil
		}
	}
	return "", false, ErrNoBackup
}

// undo restores a backup, and returns the path of a new backup of the present metadata.
func (m Metadata) undo(ctx context.Context, backup string) (saved string, err error) {
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

// tagOf returns a checksum of the superblock, which differs after each commit.
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

// create creates a file that only root can read.
func create(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
}

// copySparse copies a file to a new one, with its holes.
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
			return nil // the rest is a hole
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
