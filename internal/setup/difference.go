package setup

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/thinsnap/thinsnap/internal/setup/journal"
)

// Patch returns changes of files as a unified diff with absolute paths, for `patch -d / -p1`. If it
// has masked secrets, lines at the end say so; patch cannot apply it then.
func Patch(files []journal.File) string {
	var b strings.Builder
	isMasked := false
	for _, f := range files {
		before, after := Masked(f.Before), Masked(f.After)
		isMasked = isMasked || !bytes.Equal(before, f.Before) || !bytes.Equal(after, f.After)
		if f.Before != nil && f.After != nil && bytes.Equal(before, after) {
			fmt.Fprintf(&b, "# %s: only secret values change.\n", fileName(f.Path))
			continue
		}
		old, text := lines(string(before)), lines(string(after))
		first := 0
		for first < min(len(old), len(text)) && old[first] == text[first] {
			first++
		}
		same := 0
		for same < min(len(old), len(text))-first && old[len(old)-1-same] == text[len(text)-1-same] {
			same++
		}
		from, to := fileName(f.Path), fileName(f.Path)
		if f.Before == nil {
			from = "/dev/null"
		}
		if f.After == nil {
			to = "/dev/null"
		}
		writeHead(&b, from, to)
		writeHunks(&b, old, []change{{first, len(old) - same, text[first : len(text)-same]}}, nil)
	}
	if isMasked {
		fmt.Fprintf(&b, "# %s replaces a secret value in the file.\n", masked)
	}
	return b.String()
}
