package roff

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestPagesAreValid checks docs/man with the programs that render manual pages.
func TestPagesAreValid(t *testing.T) {
	pages, err := filepath.Glob("../../docs/man/*")
	require.NoError(t, err)
	require.Len(t, pages, 2)
	for _, page := range pages {
		t.Run("man "+filepath.Base(page), func(t *testing.T) {
			requireQuiet(t, "man", "sh", "-c", "man --warnings -E UTF-8 -l \"$0\" >/dev/null", page)
		})
		t.Run("mandoc "+filepath.Base(page), func(t *testing.T) {
			requireQuiet(t, "mandoc", "mandoc", "-T", "lint", "-W", "warning", page)
		})
	}
}

// requireQuiet fails the test if a command complains, except about a missing date. It skips the
// test if the program is not installed.
func requireQuiet(t *testing.T, program string, command ...string) {
	t.Helper()
	_, err := exec.LookPath(program)
	dmtest.RequireInstalled(t, err)
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil {
		require.ErrorAs(t, err, &exit)
	}
	var complaints []string
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, "missing date") {
			complaints = append(complaints, line)
		}
	}
	require.Empty(t, complaints)
}

// TestEscape renders texts that are roff syntax, which must come out unchanged.
func TestEscape(t *testing.T) {
	_, err := exec.LookPath("mandoc")
	dmtest.RequireInstalled(t, err)
	const odd = ".SH no heading\n'no request\n\\fBa\\b 'c' \"d\" `e` --f ^g~h"
	page := New("odd", 1, "odd things")
	page.Section("ODD .\"")
	page.Paragraph(Escape("first"))
	page.Literal(odd)
	page.Item(Bold("-x"), Italic(".y"))
	cmd := exec.Command("sh", "-c", "mandoc -T utf8 | col -bx")
	cmd.Stdin = strings.NewReader(page.String())
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	for line := range strings.Lines(odd) {
		require.Contains(t, string(out), "\n           "+strings.TrimSuffix(line, "\n")+"\n")
	}
	require.Regexp(t, `\n {5,8}-x +\.y\n`, string(out))
	require.Contains(t, string(out), "ODD .\"")
}
