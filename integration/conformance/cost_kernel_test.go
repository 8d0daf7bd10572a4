package conformance

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// cost is what an operation makes the daemon do, seen from outside.
type cost struct {
	programs, syncs, ioctls int
}

func (c cost) String() string {
	return fmt.Sprintf("%d programs, %d fdatasync, %d device-mapper ioctls", c.programs, c.syncs, c.ioctls)
}

// syscalls finds the calls that are counted in what strace prints. An execve that
// fails counts too; a call that is printed in two parts counts once.
var syscalls = regexp.MustCompile(`^\d+ +(execve|execveat|fdatasync|fsync|ioctl)\((.*)`)

var mapperIoctl = regexp.MustCompile(`DM_|_IOC\([^)]*0xfd,`)

// TestCosts counts, with strace, what each operation costs: on its way no program
// is executed, and bbolt commits one transaction, which is two fdatasyncs; Commit
// has one fsync more, of the device. The background has had its time before and
// after each of them, so that what it does is not counted.
func TestCosts(t *testing.T) {
	ctx, daemon, sn := client(t, "ext4")
	_, err := sn.Prepare(ctx, "first", "")
	require.NoError(t, err)
	require.NoError(t, sn.Commit(ctx, "layer", "first"))

	for _, step := range []struct {
		name string
		op   func() error
		want cost
	}{
		{"Prepare", func() error { _, err := sn.Prepare(ctx, "a", "layer"); return err }, cost{0, 2, 6}},
		{"Mounts", func() error { _, err := sn.Mounts(ctx, "a"); return err }, cost{0, 0, 1}},
		{"View", func() error { _, err := sn.View(ctx, "v", "layer"); return err }, cost{0, 2, 4}},
		{"second View", func() error { _, err := sn.View(ctx, "w", "layer"); return err }, cost{0, 2, 1}},
		{"Stat", func() error { _, err := sn.Stat(ctx, "a"); return err }, cost{0, 0, 0}},
		{"Usage", func() error { _, err := sn.Usage(ctx, "a"); return err }, cost{0, 0, 1}},
	} {
		t.Run(step.name, func(t *testing.T) {
			settle(t, daemon.PID())
			got := trace(t, daemon.PID(), step.op)
			t.Logf("%s: %v", step.name, got)
			require.Equal(t, step.want, got)
		})
	}
	// What these two leave to the background begins before they return, and is counted with them: a deactivation after
	// Commit; after Remove a discard, the deletion, and the transaction that clears the trash.
	for _, step := range []struct {
		name string
		op   func() error
		most cost
	}{
		{"Commit", func() error { return sn.Commit(ctx, "layer-2", "a") }, cost{0, 3, 4}},
		{"Remove of a View", func() error { return sn.Remove(ctx, "v") }, cost{0, 2, 1}},
		{"Remove", func() error { return sn.Remove(ctx, "layer-2") }, cost{0, 4, 9}},
	} {
		t.Run(step.name, func(t *testing.T) {
			settle(t, daemon.PID())
			got := trace(t, daemon.PID(), step.op)
			t.Logf("%s, with its part in the background: %v", step.name, got)
			require.Zero(t, got.programs)
			require.LessOrEqual(t, got.syncs, step.most.syncs)
			require.LessOrEqual(t, got.ioctls, step.most.ioctls)
		})
	}
}

// settle waits until the daemon has been idle for a while.
func settle(t *testing.T, pid int) {
	t.Helper()
	ticks := func() string {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		require.NoError(t, err)
		fields := regexp.MustCompile(`\S+`).FindAllString(string(stat), -1)
		return fields[13] + " " + fields[14]
	}
	require.Eventually(t, func() bool {
		before := ticks()
		time.Sleep(300 * time.Millisecond)
		return ticks() == before
	}, time.Minute, time.Millisecond)
}

// trace counts what the daemon does while op runs, and a moment longer.
func trace(t *testing.T, pid int, op func() error) cost {
	t.Helper()
	file := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command("strace", "-f", "-qq", "-o", file, "-e", "trace=execve,execveat,fdatasync,fsync,ioctl", "-p", strconv.Itoa(pid))
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool { return traced(t, pid) }, time.Minute, 10*time.Millisecond)
	require.NoError(t, op())
	settle(t, pid)
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	_ = cmd.Wait() // it ends by the signal
	return count(t, file)
}

// traced tells whether strace has attached to all threads.
func traced(t *testing.T, pid int) bool {
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

func count(t *testing.T, file string) cost {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	var c cost
	for lines := bufio.NewScanner(f); lines.Scan(); {
		match := syscalls.FindStringSubmatch(lines.Text())
		if match == nil {
			continue
		}
		switch match[1] {
		case "execve", "execveat":
			c.programs++
		case "fdatasync", "fsync":
			c.syncs++
		case "ioctl":
			if mapperIoctl.MatchString(match[2]) {
				c.ioctls++
			}
		}
	}
	return c
}
