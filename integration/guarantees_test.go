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

// TestGuaranteesNameTests: a guarantee is worth what its test is.
func TestGuaranteesNameTests(t *testing.T) {
	text, err := os.ReadFile("../docs/guarantees.md")
	require.NoError(t, err)
	there := make(map[string]bool)
	require.NoError(t, filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		code, err := os.ReadFile(path)
		for _, match := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(code, -1) {
			there[string(match[1])] = true
		}
		return err
	}))
	for _, row := range strings.Split(string(text), "\n") {
		names := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(row, -1)
		if strings.HasPrefix(row, "|") && !strings.HasPrefix(row, "|---") && !strings.Contains(row, "| shown by |") {
			require.NotEmpty(t, names, row)
		}
		for _, name := range names {
			require.True(t, there[name[1]], "%s is named, but is not there", name[1])
		}
	}
}
