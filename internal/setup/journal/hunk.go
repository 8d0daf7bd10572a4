package journal

import (
	"regexp"
	"slices"
	"strings"
)

// A Hunk describes lines that replaced other lines.
type Hunk struct {
	// At is the index of the first line, from 0.
	At  int      `json:"at"`
	Old []string `json:"old"` // with line ends
	New []string `json:"new"`
	// Before is the SHA-256 of the whole text before the change.
	Before string `json:"sha256"`
}

func splitLines(text []byte) []string {
	lines := strings.SplitAfter(string(text), "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

// between returns the change of a text as one hunk: the lines between the common start and the
// common end.
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

// revert undoes a hunk in a text. It returns false if the new lines are missing, or are ambiguous
// because they have moved and occur several times.
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

// inEffect returns the changes that a text still has. A change is missing after a crash, or after
// another program or a user has rewritten the file.
func inEffect(hunks []Hunk, text []byte) []Hunk {
	now := sum(text)
	if i := slices.IndexFunc(hunks, func(h Hunk) bool { return h.Before == now }); i >= 0 {
		hunks = hunks[:i]
	}
	return slices.DeleteFunc(slices.Clone(hunks), func(h Hunk) bool { return h.isGone(text) })
}

var inQuotes = regexp.MustCompile(`"([^"]+)"`)

// isGone reports whether the change added strings in quotes, and a text has none of them. They are
// compared without quotes, because other programs use other quotes.
func (h Hunk) isGone(text []byte) bool {
	old := strings.Join(h.Old, "")
	added := 0
	for _, match := range inQuotes.FindAllStringSubmatch(strings.Join(h.New, ""), -1) {
		if strings.Contains(old, match[1]) {
			continue
		}
		if strings.Contains(string(text), match[1]) {
			return false
		}
		added++
	}
	return added > 0
}

func (h Hunk) isAt(lines []string, at int) bool {
	return at+len(h.New) <= len(lines) && slices.Equal(lines[at:at+len(h.New)], h.New)
}
