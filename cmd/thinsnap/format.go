package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/docker/go-units"
	"golang.org/x/term"
)

// row is a line of a description.
type row struct{ label, value string }

// printRows writes rows as "label: value". It omits rows without a value.
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

// printJSON writes a value in the admin socket's form, indented. It escapes characters that could
// control the terminal, because clients choose keys and labels.
func printJSON(w io.Writer, value any) error {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return err
	}
	_, err := io.WriteString(w, escapeJSON(text.String()))
	return err
}

// escapeJSON escapes unprintable characters. Outside of strings, JSON's only such characters are
// line ends.
func escapeJSON(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case r == '\n' || strconv.IsPrint(r):
			b.WriteRune(r)
		case r > 0xFFFF:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// size formats bytes with four digits and a binary unit.
func size(bytes uint64) string { return units.BytesSize(float64(bytes)) }

// sizeIfKnown is size, or a dash for nil.
func sizeIfKnown(bytes *uint64) string {
	if bytes == nil {
		return "-"
	}
	return size(*bytes)
}

func plural[N int | uint64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// shortKey shortens each digest and each id of 64 hexadecimal digits in a key to 12 digits.
func shortKey(key string) string {
	return regexp.MustCompile(`([0-9a-f]{12})[0-9a-f]{52}`).ReplaceAllString(key, "$1…")
}

// printable quotes a key with unprintable characters, which could control the terminal or imitate
// further lines.
func printable(key string) string {
	if strings.ContainsFunc(key, func(r rune) bool { return r == utf8.RuneError || !strconv.IsPrint(r) }) {
		return strconv.Quote(key)
	}
	return key
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
