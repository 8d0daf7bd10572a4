package vm

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed rootdisk.sh
var rootDiskScript []byte

// What rootdisk.sh prints.
const (
	rootDiskReady  = "thinsnap guest ready"
	rootDiskStatus = "thinsnap guest status "
)

// rootDiskLimit is how long a machine may take to boot, each of two times if it is emulated: one boot
// in some hangs in the emulated kernel. One in a guest that is emulated itself has been seen to take
// three minutes on a busy host.
const rootDiskLimit = 6 * time.Minute

// RootDisk is a virtual machine that boots from a block device of this machine, as Kata Containers
// has one: a kernel, one disk, a serial console. It is not safe for concurrent use.
type RootDisk struct {
	console *console
	cmd     *exec.Cmd
	input   io.WriteCloser
	output  *lineQueue
	done    chan struct{} // closed when QEMU has ended
}

// BootRootDisk starts a machine whose root file system is on the block device at a path, and
// returns when its shell answers. The machine dies with this process at the latest. On failure the
// error has the console's last lines.
func BootRootDisk(ctx context.Context, device string) (*RootDisk, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	k, err := findKernel(cache, kernelSuite())
	if err != nil {
		return nil, err
	}
	image, err := ramdisk(k, rootDiskScript, []string{"virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "xfs"})
	if err != nil {
		return nil, err
	}
	accel, err := chooseAccel(ctx, cache, k, image)
	if err != nil {
		return nil, err
	}
	if accel == "tcg" {
		if k.image, err = k.unpacked(); err != nil {
			return nil, err
		}
	}
	m, err := tryRootDisk(ctx, accel, k, image, device)
	if accel == "tcg" && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return tryRootDisk(ctx, accel, k, image, device)
	}
	return m, err
}

// tryRootDisk boots a machine once.
func tryRootDisk(ctx context.Context, accel string, k kernel, image, device string) (m *RootDisk, err error) {
	output := &lineQueue{more: make(chan struct{}, 1)}
	m = &RootDisk{console: newConsole(output), output: output, done: make(chan struct{})}
	m.cmd = exec.Command(qemuProgram, append(baseArgs(accel, k, image, "loglevel=3"), "-m", "256", "-smp", "1",
		"-drive", "file="+escape(device)+",format=raw,if=none,id=root,discard=unmap,cache=writeback",
		"-device", "virtio-blk-pci,drive=root")...)
	m.cmd.Stdout, m.cmd.Stderr = m.console, m.console
	if m.input, err = m.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("make the console of a machine: %w", err)
	}
	if err := startTied(m.cmd, m.done); err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, rootDiskLimit)
	defer cancel()
	if _, err := m.await(ctx, rootDiskReady); err != nil {
		m.Kill()
		return nil, fmt.Errorf("boot from %s: %w; the machine's console:\n%s", device, err, m.console.tail(tailLines))
	}
	return m, nil
}

// await returns the lines before the first one that begins with a text, and the rest of that one.
func (m *RootDisk) await(ctx context.Context, text string) (before []string, err error) {
	for {
		for line, ok := m.output.next(); ok; line, ok = m.output.next() {
			if rest, found := strings.CutPrefix(line, text); found {
				return append(before, rest), nil
			}
			before = append(before, line)
		}
		select {
		case <-m.output.more:
		case <-m.done:
			return nil, ErrGuestGone
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Run has the machine's shell run a command of one line, and returns what it printed. The error is
// the machine's or that of a status other than 0. After an error of ctx the machine is of no more
// use.
func (m *RootDisk) Run(ctx context.Context, command string) (string, error) {
	if strings.Contains(command, "\n") {
		return "", errors.New("the command has more than one line")
	}
	if _, err := io.WriteString(m.input, command+"\n"); err != nil {
		return "", fmt.Errorf("run %q: %w: %w", command, ErrGuestGone, err)
	}
	lines, err := m.await(ctx, rootDiskStatus)
	if err != nil {
		return "", fmt.Errorf("run %q: %w; the machine's console:\n%s", command, err, m.console.tail(tailLines))
	}
	last := len(lines) - 1
	printed := strings.Join(lines[:last], "\n")
	if status, err := strconv.Atoi(lines[last]); err != nil || status != 0 {
		return printed, fmt.Errorf("run %q: status %s: %s", command, lines[last], printed)
	}
	return printed, nil
}

// Kill ends the machine at once, as a crash of the machine monitor does: what the guest has not
// synced is lost. It returns when the device is closed, and does nothing to a machine that has
// ended.
func (m *RootDisk) Kill() {
	_ = unix.Kill(m.cmd.Process.Pid, unix.SIGKILL)
	<-m.done
}

// lineQueue keeps what is written to it as lines. A write never waits: QEMU's end waits for the
// last one.
type lineQueue struct {
	more chan struct{} // has an element after a write

	mu      sync.Mutex
	content []byte
}

func (q *lineQueue) Write(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.content = append(q.content, p...)
	select {
	case q.more <- struct{}{}:
	default:
	}
	return len(p), nil
}

// next removes the first line, if it is complete.
func (q *lineQueue) next() (line string, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	first, rest, ok := bytes.Cut(q.content, []byte("\n"))
	if ok {
		q.content = rest
	}
	return strings.TrimRight(string(first), "\r"), ok
}
