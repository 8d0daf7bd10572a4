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

// The output of rootdisk.sh.
const (
	rootDiskReady  = "thinsnap guest ready"
	rootDiskStatus = "thinsnap guest status "
)

// rootDiskLimit bounds a boot. An emulated machine gets two tries, because some boots hang in the emulated kernel. On a
// busy host, with the host emulated itself, a boot has taken three minutes.
const rootDiskLimit = 6 * time.Minute

// RootDisk is a virtual machine that boots from a block device of this machine, like one of Kata Containers: a kernel,
// one disk, a serial console. It is not safe for concurrent use.
type RootDisk struct {
	console *console
	cmd     *exec.Cmd
	input   io.WriteCloser
	output  *lineQueue
	done    chan struct{} // closed when QEMU has ended
}

// BootRootDisk starts a machine whose root file system is on a block device, and returns when its shell answers. The
// machine ends with this process at the latest. An error has the console's last lines.
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

// await returns the lines before the first one that begins with a prefix, and the rest of that line.
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

// Run has the machine's shell run a command of one line, and returns its output. A status other than 0 is an error.
// After an error of ctx the machine cannot be used any more.
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

// Kill ends the machine at once, like a crash of the virtual machine monitor: writes that the guest has not synced are
// lost. It returns when the device is closed, and does nothing to a machine that has ended.
func (m *RootDisk) Kill() {
	_ = unix.Kill(m.cmd.Process.Pid, unix.SIGKILL)
	<-m.done
}

// lineQueue splits its input into lines. A write never blocks, because QEMU's end waits for the last write.
type lineQueue struct {
	more chan struct{} // gets an element after a write

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
