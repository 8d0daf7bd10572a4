package vm

import (
	"bytes"
	"io"
	"strings"
	"sync"
)

// consoleLines is how much of a guest's console is kept.
const consoleLines = 400

// console keeps the last lines that the guest's kernel and process 1 wrote. It is safe for concurrent use.
type console struct {
	copyTo io.Writer // nil for none

	mu      sync.Mutex
	lines   []string
	partial []byte
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
	}
	if n := len(c.lines) - consoleLines; n > 0 {
		c.lines = append([]string(nil), c.lines[n:]...)
	}
	if c.copyTo != nil {
		return c.copyTo.Write(p)
	}
	return len(p), nil
}

// tail returns the last n lines.
func (c *console) tail(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := c.lines
	if len(c.partial) > 0 {
		lines = append(lines[:len(lines):len(lines)], string(c.partial))
	}
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
