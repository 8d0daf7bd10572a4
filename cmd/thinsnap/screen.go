package main

import (
	"io"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// screen is a terminal in full-screen mode. close restores the terminal.
type screen struct {
	out     *os.File
	restore func()
	// quit is closed when q or Ctrl-C is pressed. resized receives a value when the size of the
	// window changes.
	quit    chan struct{}
	resized chan os.Signal
}

// openScreen opens the terminal out, and reads the keyboard if in is a terminal.
func openScreen(in, out *os.File) (*screen, error) {
	s := &screen{out: out, restore: func() {}, quit: make(chan struct{}), resized: make(chan os.Signal, 1)}
	if in != nil && isTerminal(in) {
		before, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return nil, err
		}
		s.restore = func() { _ = term.Restore(int(in.Fd()), before) } // on a lost terminal, nothing needs to be restored
		go s.read(in)
	}
	signal.Notify(s.resized, unix.SIGWINCH)
	// Switch to the alternate screen, and hide the cursor.
	if _, err := io.WriteString(out, "\x1b[?1049h\x1b[?25l"); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// read closes quit when a quit key is pressed. It may outlive the screen, and ends with the
// process.
func (s *screen) read(in io.Reader) {
	key := make([]byte, 1)
	for {
		if n, err := in.Read(key); err != nil || n == 1 && strings.IndexByte("qQ\x03\x04", key[0]) >= 0 {
			close(s.quit)
			return
		}
	}
}

func (s *screen) size() (columns, lines int) {
	columns, lines, err := term.GetSize(int(s.out.Fd()))
	if err != nil || columns == 0 || lines == 0 {
		return 80, 24
	}
	return columns, lines
}

// show fills the window with lines, which must fit.
func (s *screen) show(lines []string) error {
	// Overwriting each line, and erasing its rest, avoids flicker.
	_, err := io.WriteString(s.out, "\x1b[H"+strings.Join(lines, "\x1b[K\r\n")+"\x1b[K\x1b[J")
	return err
}

func (s *screen) close() {
	signal.Stop(s.resized)
	_, _ = io.WriteString(s.out, "\x1b[?25h\x1b[?1049l") // as with restore
	s.restore()
}
