package clients

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Process identifies a process on this machine.
type Process struct {
	PID       int    // 0 if thinsnap's PID namespace does not show the process
	StartTime uint64 // in clock ticks since boot (proc_pid_stat(5), field 22)
	BootID    string
	Program   string // path, or first argument if the path cannot be read; may be empty
}

// Peer returns the process at the other end of a unix socket.
func Peer(conn net.Conn) (Process, error) {
	for {
		wrapped, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = wrapped.NetConn()
	}
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return Process{}, fmt.Errorf("a %T has no peer process", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return Process{}, err
	}
	var cred *unix.Ucred
	if controlErr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); controlErr != nil {
		return Process{}, controlErr
	}
	if err != nil {
		return Process{}, fmt.Errorf("find the peer of a socket: %w", err)
	}
	return FindProcess(int(cred.Pid)), nil
}

// Listener returns the process that listens on the unix socket at a path.
func Listener(ctx context.Context, path string) (Process, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return Process{}, err
	}
	p, err := Peer(conn)
	return p, errors.Join(err, conn.Close())
}

// FindProcess returns the process with a PID. If it has ended, StartTime is 0 and Program is empty.
func FindProcess(pid int) Process {
	p := Process{PID: pid}
	if pid == 0 {
		return p
	}
	if boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		p.BootID = strings.TrimSpace(string(boot))
	}
	p.StartTime = startTime(pid)
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	// The link of a process with more capabilities than ours needs CAP_SYS_PTRACE; the arguments do
	// not (proc(5)).
	program, err := os.Readlink(filepath.Join(dir, "exe"))
	if err != nil {
		arguments, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		program, _, _ = strings.Cut(string(arguments), "\x00")
	}
	p.Program = program
	return p
}

// startTime returns 0 if the process has ended.
func startTime(pid int) uint64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The second field is the name in parentheses, which may contain parentheses and spaces.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	const index = 22 - 3 // the slice begins with field 3
	if len(fields) <= index {
		return 0
	}
	ticks, _ := strconv.ParseUint(fields[index], 10, 64)
	return ticks
}

// Same reports whether two descriptions are of the same process. All processes that cannot be seen
// count as one.
func (p Process) Same(other Process) bool {
	return p.PID == other.PID && p.StartTime == other.StartTime && p.BootID == other.BootID
}

func (p Process) String() string {
	switch {
	case p.PID == 0:
		return "a process that cannot be seen from here"
	case p.Program == "":
		return fmt.Sprintf("process %d", p.PID)
	default:
		return fmt.Sprintf("process %d (%s)", p.PID, p.Program)
	}
}

// handle refers to a process while it is open, even if the PID is used again.
type handle struct{ file *os.File }

// openHandle returns a handle of a process, or nil if the process has ended.
func openHandle(p Process) (*handle, error) {
	if p.PID == 0 {
		return nil, nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	// EINVAL, and ENOENT since Linux 6.15: the PID is now that of a thread of another process.
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open a handle of process %d: %w", p.PID, err)
	}
	h := &handle{os.NewFile(uintptr(fd), "pidfd")}
	if !FindProcess(p.PID).Same(p) { // the PID is now another process's
		h.close()
		return nil, nil
	}
	return h, nil
}

// lives reports whether the process has not ended. A zombie has ended.
func (h *handle) lives() bool {
	if h == nil {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(h.file.Fd()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n == 0
		}
	}
}

func (h *handle) close() {
	if h != nil {
		_ = h.file.Close()
	}
}
