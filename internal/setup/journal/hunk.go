package journal

import (
	"slices"
	"strings"
)

// A Hunk says which lines took the place of others.
type Hunk struct {
	// At is the index of the first line, counted from 0.
	At  int      `json:"at"`
	Old []string `json:"old"` // with their ends
	New []string `json:"new"`
	// Before is the SHA-256 of the whole text without the change.
	Before string `json:"sha256"`
}

func splitLines(text []byte) []string {
	lines := strings.SplitAfter(string(text), "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

// between returns the change of a text as one hunk: the lines between those that both have at the ends.
func between(before, after []byte) Hunk {
	old, lines := splitLines(before), splitLines(after)
	at := 0
	for at < len(old) && at < len(lines) && old[at] == lines[at] {
		at++
	}
	same := 0
	for same < min(len(old), len(lines))-at && old[len(old)-1-same] == lines[len(lines)-1-same] {
		same++
	}
	return Hunk{at, old[at : len(old)-same], lines[at : len(lines)-same], sum(before)}
}

// revert takes a hunk out of a text. It returns false if the lines are no longer there, or are there
// more than once at other places.
func (h Hunk) revert(text []byte) ([]byte, bool) {
	lines := splitLines(text)
	at := h.At
	if !h.isAt(lines, at) {
		var places []int
		for i := range lines {
			if h.isAt(lines, i) {
				places = append(places, i)
			}
		}
		if len(h.New) == 0 || len(places) != 1 {
			return nil, false
		}
		at = places[0]
	}
	return []byte(strings.Join(slices.Concat(lines[:at], h.Old, lines[at+len(h.New):]), "")), true
}

func (h Hunk) isAt(lines []string, at int) bool {
	return at+len(h.New) <= len(lines) && slices.Equal(lines[at:at+len(h.New)], h.New)
}
