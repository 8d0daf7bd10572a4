package main

import (
	"os"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// palette colours texts for a terminal. If it is false, texts stay plain.
type palette bool

// colours reports whether the output may be coloured (https://no-color.org).
func colours(terminal bool) palette {
	return palette(terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb")
}

func (p palette) paint(code, text string) string {
	if !p || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (p palette) bold(text string) string   { return p.paint("1", text) }
func (p palette) dim(text string) string    { return p.paint("2", text) }
func (p palette) red(text string) string    { return p.paint("31", text) }
func (p palette) green(text string) string  { return p.paint("32", text) }
func (p palette) yellow(text string) string { return p.paint("33", text) }
func (p palette) blue(text string) string   { return p.paint("34", text) }

// level colours a text by the level of a space.
func (p palette) level(level, text string) string {
	switch level {
	case admin.LevelShort:
		return p.red(text)
	case admin.LevelLow:
		return p.yellow(text)
	default:
		return text
	}
}

// state formats a pool's state: green for rw, else red.
func (p palette) state(pool *admin.Pool) string {
	switch {
	case pool.NeedsCheck:
		return p.red(pool.State + ", needs_check")
	case pool.State != admin.StateReadWrite:
		return p.red(pool.State)
	default:
		return p.green(pool.State)
	}
}

// kind colours the kinds of snapshots that may be in use.
func (p palette) kind(kind string) string {
	switch kind {
	case admin.KindActive:
		return p.green(kind)
	case admin.KindView:
		return p.yellow(kind)
	default:
		return kind
	}
}

// codes matches colour codes in a text. Keys and labels add none: printable quotes them.
var codes = regexp.MustCompile("\x1b\\[[0-9]+m")

// width returns the width of a coloured text in columns, one for each character.
func width(text string) int { return utf8.RuneCountInString(codes.ReplaceAllString(text, "")) }

func clip(text string, columns int) string {
	if width(text) <= columns {
		return text
	}
	var b strings.Builder
	left := columns
	for text != "" {
		if at := codes.FindStringIndex(text); at != nil && at[0] == 0 {
			b.WriteString(text[:at[1]])
			text = text[at[1]:]
			continue
		}
		r, n := utf8.DecodeRuneInString(text)
		switch {
		case left > 1:
			b.WriteRune(r)
		case left == 1:
			b.WriteRune('…')
		}
		left--
		text = text[n:]
	}
	return b.String()
}
