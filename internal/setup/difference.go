package setup

import (
	"strings"

	"github.com/thinsnap/thinsnap/internal/setup/journal"
)

// Patch returns changes of files as a unified difference with absolute paths, as `patch -d / -p1` takes
// it.
func Patch(files []journal.File) string {
	var b strings.Builder
	for _, f := range files {
		old, text := lines(string(f.Before)), lines(string(f.After))
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
		writeHunks(&b, old, []change{{first, len(old) - same, text[first : len(text)-same]}})
	}
	return b.String()
}
