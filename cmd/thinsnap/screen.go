package main

import (
	"io"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// screen is a terminal that a command has to itself until it is closed, and then is as it was.
type screen struct {
	out     *os.File
	restore func()
	// quit is closed when somebody presses q or Ctrl-C, resized has a value when the window has another size.
	quit    chan struct{}
	resized chan os.Signal
}

// openScreen takes over the terminal out, and the keyboard if in is one too.
func openScreen(in, out *os.File) (*screen, error) {
	s := &screen{out: out, restore: func() {}, quit: make(chan struct{}), resized: make(chan os.Signal, 1)}
	if in != nil && isTerminal(in) {
		before, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return nil, err
		}
		s.restore = func() { _ = term.Restore(int(in.Fd()), before) } // with a terminal that is gone there is nothing to be done
		go s.read(in)
	}
	signal.Notify(s.resized, unix.SIGWINCH)
	// The other screen, of xterm and all that follow it, and no cursor.
	if _, err := io.WriteString(out, "\x1b[?1049h\x1b[?25l"); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// read waits for a key that ends it. It is left waiting when the screen is closed, and ends with the process.
func (s *screen) read(in io.Reader) {
	key := make([]byte, 1)
	for {
		if n, err := in.Read(key); err != nil || n == 1 && strings.IndexByte("qQ\x03\x04", key[0]) >= 0 {
			close(s.quit)
			return
		}
	}
}

// size is that of the window.
func (s *screen) size() (columns, lines int) {
	columns, lines, err := term.GetSize(int(s.out.Fd()))
	if err != nil || columns == 0 || lines == 0 {
		return 80, 24
	}
	return columns, lines
}

// show fills the window with lines, which fit it.
func (s *screen) show(lines []string) error {
	// Each line is written over what was there, and the rest of it erased: nothing flickers.
	_, err := io.WriteString(s.out, "\x1b[H"+strings.Join(lines, "\x1b[K\r\n")+"\x1b[K\x1b[J")
	return err
}

func (s *screen) close() {
	signal.Stop(s.resized)
	_, _ = io.WriteString(s.out, "\x1b[?25h\x1b[?1049l") // as with restore
	s.restore()
}
