// Package trace counts a process's system calls with strace: costs that are the same on every machine.
package trace

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Cost counts the system calls of a process and its children in an operation.
type Cost struct {
	Programs     int // executed, or not found
	Syncs        int // calls of fdatasync and fsync
	Transactions int // of bbolt: each has two of the fdatasyncs, on a file *.db
	Ioctls       int // of device-mapper
	// Looks is the number of looks at the pool after events: two ioctls each, the first DM_DEV_ARM_POLL.
	Looks int
	// Calls are all system calls, except those that do not depend on the operation (untraced, uncounted).
	Calls int
}

func (c Cost) String() string {
	return fmt.Sprintf("%d programs, %d fdatasync, %d transactions, %d device-mapper ioctls, %d looks, %d calls",
		c.Programs, c.Syncs, c.Transactions, c.Ioctls, c.Looks, c.Calls)
}

// untraced are the system calls of Go's scheduler, clock and memory: their number depends on timing.
const untraced = "clock_gettime,nanosleep,futex,sched_yield,sched_getaffinity,restart_syscall,epoll_pwait,epoll_wait," +
	"ppoll,poll,getpid,gettid,tgkill,rt_sigreturn,rt_sigprocmask,rt_sigaction,sigaltstack,madvise,munmap,mprotect,clone," +
	"clone3,exit,exit_group,wait4,waitid"

// line matches a system call in strace's output: the name, the path of the first argument if that is a file, and the
// rest. A failed execve counts; a call that is printed in two parts counts once.
var line = regexp.MustCompile(`^\d+ +([a-z0-9_]+)\((?:\d+<([^>]*)>)?(.*)`)

var (
	mapperIoctl = regexp.MustCompile(`^, (DM_|_IOC\([^)]*0xfd,)`)
	armPoll     = regexp.MustCompile(`^, (DM_DEV_ARM_POLL|_IOC\([^)]*0xfd, 0x10,)`)
	// uncounted matches lines about memory, the client's connection, Go's poller, the log, the daemon's check of the
	// pool's disks each second, and its search for a containerd's socket.
	uncounted = regexp.MustCompile(
		`MAP_ANON|<socket:|<UNIX|<anon_inode:\[eventfd|\(2<|/pool/(meta)?data"|/no_space_timeout|/proc/\d+/net/unix`)
)

// Count counts the calls of a process and its children from the start of op until the process is idle. Syncs of the
// ignored files are left out.
func Count(t testing.TB, pid int, op func() error, ignored ...string) Cost {
	t.Helper()
	file := filepath.Join(t.TempDir(), "trace")
	run(t, pid, op, "-y", "-o", file, "-e", "trace=!"+untraced)
	return count(t, file, ignored)
}

// Calls counts all system calls of a process and its children by their names, from the start of op until the process is
// idle. A traced process is slow, so it waits for its threads and reads the clock more often.
func Calls(t testing.TB, pid int, op func() error) map[string]int {
	t.Helper()
	file := filepath.Join(t.TempDir(), "calls")
	run(t, pid, op, "-c", "-U", "name,calls", "-o", file)
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	return parseCalls(string(content))
}

// parseCalls reads strace's summary: lines of a name and a number, between a heading and a total.
func parseCalls(summary string) map[string]int {
	calls := make(map[string]int)
	for line := range strings.Lines(summary) {
		fields := strings.Fields(line)
		if len(fields) != 2 || fields[0] == "total" {
			continue
		}
		if n, err := strconv.Atoi(fields[1]); err == nil {
			calls[fields[0]] = n
		}
	}
	return calls
}

// run runs op with strace attached to a process and its children, until the process is idle.
func run(t testing.TB, pid int, op func() error, options ...string) {
	t.Helper()
	cmd := exec.Command("strace", append([]string{"-f", "-qq", "-p", strconv.Itoa(pid)}, options...)...)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool { return attached(t, pid) }, time.Minute, 10*time.Millisecond)
	require.NoError(t, op())
	AwaitIdle(t, pid)
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	_ = cmd.Wait() // ended by the signal
}

// AwaitIdle waits until a process has been idle for a while.
func AwaitIdle(t testing.TB, pid int) {
	t.Helper()
	ticks := func() string {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		require.NoError(t, err)
		fields := strings.Fields(string(stat))
		return fields[13] + " " + fields[14]
	}
	require.Eventually(t, func() bool {
		before := ticks()
		time.Sleep(300 * time.Millisecond)
		return ticks() == before
	}, time.Minute, time.Millisecond)
}

// attached reports whether strace has attached to all threads.
func attached(t testing.TB, pid int) bool {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	require.NoError(t, err)
	for _, thread := range threads {
		status, err := os.ReadFile(thread)
		if err != nil || regexp.MustCompile(`TracerPid:\s+0\b`).Match(status) {
			return false
		}
	}
	return true
}

func count(t testing.TB, file string, ignored []string) Cost {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	var c Cost
	written := 0 // syncs of databases
	for lines := bufio.NewScanner(f); lines.Scan(); {
		match := line.FindStringSubmatch(lines.Text())
		if match == nil {
			continue
		}
		call, path, rest := match[1], match[2], match[3]
		if !uncounted.MatchString(lines.Text()) {
			c.Calls++
		}
		switch call {
		case "execve", "execveat":
			c.Programs++
		case "fdatasync", "fsync":
			if slices.Contains(ignored, path) {
				continue
			}
			c.Syncs++
			if call == "fdatasync" && strings.HasSuffix(path, ".db") {
				written++
			}
		case "ioctl":
			if mapperIoctl.MatchString(rest) {
				c.Ioctls++
			}
			if armPoll.MatchString(rest) {
				c.Looks++
			}
		}
	}
	c.Transactions = written / 2
	return c
}
