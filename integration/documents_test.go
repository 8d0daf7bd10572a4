package integration

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// proseColumns is the width of prose in documents. Tables, code and generated text are exempt.
const proseColumns = 120

// generated are the documents whose prose comes from the code.
var generated = []string{"../docs/configuration.md"}

// documents returns the text of every Markdown file of the repository by its path.
func documents(t *testing.T) map[string]string {
	t.Helper()
	found := make(map[string]string)
	require.NoError(t, filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != ".." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		found[path] = string(text)
		return err
	}))
	require.Contains(t, found, "../README.md")
	return found
}

// prose returns the lines of a document by their numbers, without tables and code.
func prose(text string) map[int]string {
	lines := make(map[int]string)
	fenced := false
	for i, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
			continue
		}
		if !fenced && !strings.HasPrefix(line, "|") && !strings.HasPrefix(line, "    ") {
			lines[i+1] = line
		}
	}
	return lines
}

func TestDocumentsAreWrapped(t *testing.T) {
	texts := documents(t)
	for _, path := range generated {
		require.Contains(t, texts, path)
		delete(texts, path)
	}
	for path, text := range texts {
		for number, line := range prose(text) {
			if columns := utf8.RuneCountInString(line); columns > proseColumns {
				t.Errorf("%s:%d: %d columns, more than %d", path, number, columns, proseColumns)
			}
		}
	}
}

// TestDocumentsAreShort limits the length of the two documents that everyone reads.
func TestDocumentsAreShort(t *testing.T) {
	texts := documents(t)
	for path, most := range map[string]int{"../README.md": 110, "../CONTRIBUTING.md": 120} {
		require.LessOrEqual(t, strings.Count(texts[path], "\n"), most, path)
	}
}

// TestDocumentsLinkToFiles checks that a link to a file or a heading of the repository leads there.
func TestDocumentsLinkToFiles(t *testing.T) {
	texts := documents(t)
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for path, text := range texts {
		for _, match := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(match[1], "://") {
				continue
			}
			name, anchor, _ := strings.Cut(match[1], "#")
			target := path
			if name != "" {
				target = filepath.Join(filepath.Dir(path), name)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: link to %s: %v", path, match[1], err)
			} else if anchor != "" && !headings(texts[target])[anchor] {
				t.Errorf("%s: link to %s: no such heading", path, match[1])
			}
		}
	}
}

// headings returns the anchors of a document's headings, as GitHub makes them.
func headings(text string) map[string]bool {
	anchors := make(map[string]bool)
	for _, line := range prose(text) {
		title := strings.TrimLeft(line, "#")
		if title == line {
			continue
		}
		anchors[strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
				return unicode.ToLower(r)
			}
			return -1
		}, strings.TrimSpace(title))] = true
	}
	return anchors
}
