package devmapper

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrLocked is matched when another Control, mostly of another process, holds a lock.
var ErrLocked = errors.New("is locked")

// Lock takes the lock with the given name until c is closed or the process ends. It does nothing if
// c holds the lock. If another Control holds it, Lock returns ErrLocked and names its process.
//
// It is an open file description lock on one byte of the control device (fcntl(2), F_OFD_SETLK),
// which all containers that share the host's /dev see. A lock on a mapped device would keep that
// open, so its owner could not remove it.
func (c *Control) Lock(name string) error {
	byName := fnv.New64a()
	_, _ = byName.Write([]byte(name))
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(byName.Sum64() >> 2), Len: 1}
	conn, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	var lockErr error
	if err := conn.Control(func(fd uintptr) {
		lockErr = unix.FcntlFlock(fd, unix.F_OFD_SETLK, &lock)
	}); err != nil {
		return c.orClosed(err)
	}
	if errors.Is(lockErr, unix.EAGAIN) || errors.Is(lockErr, unix.EACCES) {
		return fmt.Errorf("%s %w by %s", name, ErrLocked, lockHolder(lock.Start))
	}
	if lockErr != nil {
		return fmt.Errorf("lock %s: %w", name, lockErr)
	}
	return nil
}

// lockHolder names the process that holds the lock on a byte, by its id and command line. Only
// /proc shows it (proc_pid_fdinfo(5)).
func lockHolder(start int64) string {
	infos, err := filepath.Glob("/proc/[0-9]*/fdinfo/*")
	if err != nil {
		return "another process"
	}
	end := fmt.Sprintf(" %d %d", start, start)
	for _, info := range infos {
		text, err := os.ReadFile(info)
		if err != nil {
			continue // ended meanwhile
		}
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, "lock:") || !strings.HasSuffix(strings.TrimSpace(line), end) {
				continue
			}
			dir := filepath.Dir(filepath.Dir(info))
			command, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
			return fmt.Sprintf("process %s (%s)", filepath.Base(dir),
				strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " ")))
		}
	}
	return "another process"
}
