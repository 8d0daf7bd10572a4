package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/docker/go-units"
	"golang.org/x/term"
)

// row is one line of a description.
type row struct{ label, value string }

// printRows writes "label: value" lines, and none for an empty value.
func printRows(w io.Writer, rows []row) error {
	var b strings.Builder
	for _, r := range rows {
		if r.value != "" {
			fmt.Fprintf(&b, "%s: %s\n", r.label, r.value)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printTable writes lines of cells in aligned columns. The first line is their heading.
func printTable(w io.Writer, p palette, lines [][]string) error {
	_, err := io.WriteString(w, strings.Join(align(p, lines), "\n")+"\n")
	return err
}

// align puts cells, which may be coloured, into columns.
func align(p palette, lines [][]string) []string {
	var widths []int
	for _, cells := range lines {
		for i, cell := range cells {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], width(cell))
		}
	}
	aligned := make([]string, len(lines))
	for n, cells := range lines {
		var b strings.Builder
		for i, cell := range cells {
			b.WriteString(cell)
			if i < len(cells)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-width(cell)+2))
			}
		}
		aligned[n] = b.String()
	}
	if len(aligned) > 0 {
		aligned[0] = p.bold(aligned[0])
	}
	return aligned
}

// printJSON writes a value as the admin socket has it, indented.
func printJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// size writes bytes for people: four digits and a binary unit.
func size(bytes uint64) string { return units.BytesSize(float64(bytes)) }

// sizeIfKnown is size, or a dash.
func sizeIfKnown(bytes *uint64) string {
	if bytes == nil {
		return "-"
	}
	return size(*bytes)
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// shortKey cuts every digest and id of 64 hexadecimal digits in a key to its first 12.
func shortKey(key string) string {
	return regexp.MustCompile(`([0-9a-f]{12})[0-9a-f]{52}`).ReplaceAllString(key, "$1…")
}

// printable quotes a key that has what is no character to print: it must not command the terminal, or pass for more lines.
func printable(key string) string {
	if strings.ContainsFunc(key, func(r rune) bool { return r == utf8.RuneError || !strconv.IsPrint(r) }) {
		return strconv.Quote(key)
	}
	return key
}

// isTerminal tells whether somebody is looking at what is written to f.
func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
