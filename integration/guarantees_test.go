package integration

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestGuaranteesNameTests: each row of docs/guarantees.md names a test, and all named tests exist.
func TestGuaranteesNameTests(t *testing.T) {
	text, err := os.ReadFile("../docs/guarantees.md")
	require.NoError(t, err)
	there := testNames(t)
	for _, row := range strings.Split(string(text), "\n") {
		names := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(row, -1)
		if strings.HasPrefix(row, "|") && !strings.HasPrefix(row, "|---") && !strings.Contains(row, "| shown by |") {
			require.NotEmpty(t, names, row)
		}
		for _, name := range names {
			require.Contains(t, there, name[1])
		}
	}
}
