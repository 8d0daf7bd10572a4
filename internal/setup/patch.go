package setup

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

const contextLines = 3

// A change replaces the lines first to next (exclusive, by index) of a text.
type change struct {
	first, next int
	lines       []string // with line ends
}

// writePatch writes sorted edits of a text as a unified diff without secrets: context lines with
// secrets are left out, and a change of such a line is errdefs.ErrNotImplemented.
func writePatch(b *strings.Builder, path string, text []byte, edits []edit) error {
	old := lines(string(text))
	planned, secret := changes(string(text), old, edits), secretLines(text)
	for _, c := range planned {
		if hasLine(secret, c.first, c.next) {
			return fmt.Errorf("%s: line %d changes, and has a secret, which is not printed: change it by hand, as "+
				"docs/migration.md says: %w", path, c.first+1, errdefs.ErrNotImplemented)
		}
	}
	writeHead(b, fileName(path), fileName(path))
	writeHunks(b, old, planned, secret)
	return nil
}

// hasLine reports whether the set has a line from first to next (exclusive).
func hasLine(set map[int]bool, first, next int) bool {
	for i := first; i < next; i++ {
		if set[i] {
			return true
		}
	}
	return false
}

func writeHead(b *strings.Builder, from, to string) { fmt.Fprintf(b, "--- %s\t\n+++ %s\t\n", from, to) }

// fileName quotes a path for patch(1).
func fileName(path string) string {
	if strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == '"' || r == '\\' || r == 0x7f }) {
		return strconv.Quote(path)
	}
	return path
}

func writeHunks(b *strings.Builder, old []string, changes []change, secret map[int]bool) {
	grown := 0
	for _, hunk := range hunks(changes, secret) {
		first, next := surroundings(len(old), hunk[0].first, hunk[len(hunk)-1].next, secret)
		more := 0
		for _, c := range hunk {
			more += len(c.lines) - (c.next - c.first)
		}
		fmt.Fprintf(b, "@@ -%s +%s @@\n", lineRange(first, next-first), lineRange(first+grown, next-first+more))
		grown += more
		at := first
		for _, c := range hunk {
			writeLines(b, ' ', old[at:c.first])
			writeLines(b, '-', old[c.first:c.next])
			writeLines(b, '+', c.lines)
			at = c.next
		}
		writeLines(b, ' ', old[at:next])
	}
}

// surroundings adds at most contextLines lines at each end, and stops at a secret. Both ends get
// the same number: patch(1) assumes that a hunk with less context at its end is at the end of the
// file. count is the number of lines in the text.
func surroundings(count, first, next int, secret map[int]bool) (from, to int) {
	for n := contextLines; n > 0; n-- {
		from, to = max(first-n, 0), min(next+n, count)
		if !hasLine(secret, from, first) && !hasLine(secret, next, to) {
			return from, to
		}
	}
	return first, next
}

// hunks groups changes whose contexts meet.
func hunks(changes []change, secret map[int]bool) [][]change {
	var groups [][]change
	for i, c := range changes {
		if i == 0 || c.first-changes[i-1].next > 2*contextLines || hasLine(secret, changes[i-1].next, c.first) {
			groups = append(groups, nil)
		}
		last := len(groups) - 1
		groups[last] = append(groups[last], c)
	}
	return groups
}

// lineRange formats a range in a hunk's header. An empty range names the line before it.
func lineRange(first, count int) string {
	if count == 0 {
		return fmt.Sprintf("%d,0", first)
	}
	return fmt.Sprintf("%d,%d", first+1, count)
}

func writeLines(b *strings.Builder, mark byte, lines []string) {
	for _, line := range lines {
		b.WriteByte(mark)
		b.WriteString(line)
		if !strings.HasSuffix(line, "\n") {
			b.WriteString("\n\\ No newline at end of file\n")
		}
	}
}

// lines splits a text after each line end.
func lines(text string) []string {
	split := strings.SplitAfter(text, "\n")
	if split[len(split)-1] == "" {
		split = split[:len(split)-1]
	}
	return split
}

// changes returns the lines that sorted edits change.
func changes(text string, old []string, edits []edit) []change {
	starts := make([]int, 0, len(old)+1) // of the lines, and the end of the text
	at := 0
	for _, line := range old {
		starts = append(starts, at)
		at += len(line)
	}
	starts = append(starts, at)
	lineOf := func(at int) int {
		i, found := slices.BinarySearch(starts, at)
		unended := i == len(old) && i > 0 && !strings.HasSuffix(text, "\n")
		if !found || unended {
			return i - 1
		}
		return i
	}
	var found []change
	for len(edits) > 0 {
		first, next := lineOf(edits[0].at), 0
		count := 0
		for _, e := range edits {
			if count > 0 && lineOf(e.at) >= next {
				break
			}
			next = max(next, min(lineOf(e.end)+1, len(old)))
			count++
		}
		now := lines(applyEdits(text, starts[first], starts[next], edits[:count]))
		found = append(found, trimCommon(old, change{first, next, now}))
		edits = edits[count:]
	}
	return found
}

// applyEdits returns a part of a text with edits applied.
func applyEdits(text string, at, end int, edits []edit) string {
	var b strings.Builder
	for _, e := range edits {
		b.WriteString(text[at:e.at] + e.text)
		at = e.end
	}
	b.WriteString(text[at:end])
	return b.String()
}

// trimCommon removes equal lines from both ends of a change.
func trimCommon(old []string, c change) change {
	for c.first < c.next && len(c.lines) > 0 && old[c.first] == c.lines[0] {
		c.first, c.lines = c.first+1, c.lines[1:]
	}
	for c.first < c.next && len(c.lines) > 0 && old[c.next-1] == c.lines[len(c.lines)-1] {
		c.next, c.lines = c.next-1, c.lines[:len(c.lines)-1]
	}
	return c
}
