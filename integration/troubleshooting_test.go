package integration

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// notOurs are messages of other programs, and parts of headings that are no messages.
var notOurs = []string{
	"snapshotter not loaded: thinsnap", "ctr plugins ls", "dial unix /run/thinsnap/thinsnap.sock: connect: no such file or directory",
	"Unpack configuration not supported, skipping", "df", "thinsnap pool destroy", "share/root",
	"unknown service containerd.services.images.v1.Images",
}

// TestTroubleshootingQuotes: the code has all messages quoted in headings, so that a search for a message finds its
// heading.
func TestTroubleshootingQuotes(t *testing.T) {
	text, err := os.ReadFile("../docs/troubleshooting.md")
	require.NoError(t, err)
	var code strings.Builder
	for _, dir := range []string{"cmd", "devmapper", "internal", "metadata", "snapshotter"} {
		require.NoError(t, filepath.WalkDir("../"+dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := os.ReadFile(path)
			code.Write(file)
			return err
		}))
	}
	messages := regexp.MustCompile(`" \+\n\t*"`).ReplaceAllString(code.String(), "")
	quotes := 0
	for _, heading := range regexp.MustCompile(`(?m)^### .*$`).FindAllString(string(text), -1) {
		for _, quoted := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(heading, -1) {
			known := false
			for _, other := range notOurs {
				known = known || other == quoted[1]
			}
			if !known {
				require.Contains(t, messages, quoted[1])
				quotes++
			}
		}
	}
	require.Greater(t, quotes, 20)
}
