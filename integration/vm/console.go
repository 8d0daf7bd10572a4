package vm

import (
	"bytes"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

const consoleLines = 400

// hangSeconds is the time after which a processor that runs the same kernel code counts as hung. The kernel warns after
// 20 seconds, which a guest on a busy machine can reach without a hang.
const hangSeconds = 120

// lockup is the kernel's warning (watchdog_timer_fn in kernel/watchdog.c).
var lockup = regexp.MustCompile(`soft lockup - CPU#\d+ stuck for (\d+)s!`)

// staleCode is the kernel's report of a breakpoint that it does not know (exc_int3 in arch/x86/kernel/traps.c). It sets
// one while it replaces an instruction, and no longer knows it afterwards; see ErrStaleCode.
var staleCode = regexp.MustCompile(`\bint3: 0000 \[#\d+\]`)

// console keeps the last lines of the guest's kernel and process 1. It is safe for concurrent use.
type console struct {
	copyTo io.Writer // may be nil

	hung chan struct{} // closed when the kernel reports a hang

	mu      sync.Mutex
	lines   []string
	partial []byte
	hangs   bool
	stale   bool
}

func newConsole(copyTo io.Writer) *console {
	return &console{copyTo: copyTo, hung: make(chan struct{})}
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.partial = append(c.partial, p...)
	for {
		line, rest, ok := bytes.Cut(c.partial, []byte("\n"))
		if !ok {
			break
		}
		c.lines = append(c.lines, strings.TrimRight(string(line), "\r"))
		c.partial = rest
		c.stale = c.stale || staleCode.MatchString(string(line))
		if !c.hangs && isHang(string(line)) {
			c.hangs = true
			close(c.hung)
		}
	}
	if n := len(c.lines) - consoleLines; n > 0 {
		c.lines = append([]string(nil), c.lines[n:]...)
	}
	if c.copyTo != nil {
		return c.copyTo.Write(p)
	}
	return len(p), nil
}

// staleCode reports whether the kernel met a breakpoint that it does not know.
func (c *console) staleCode() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stale
}

func isHang(line string) bool {
	match := lockup.FindStringSubmatch(line)
	if match == nil {
		return false
	}
	seconds, err := strconv.Atoi(match[1])
	return err == nil && seconds >= hangSeconds
}

func (c *console) tail(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := c.lines
	if len(c.partial) > 0 {
		lines = append(lines[:len(lines):len(lines)], string(c.partial))
	}
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
