package setup

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

const importsKey = "imports"

// addImport appends a path to the list imports. A new list gets the comment.
func (e *editor) addImport(path, comment string) {
	at, text := e.topLine(fmt.Sprintf("%s = [%s]%s\n", importsKey, strconv.Quote(path), comment))
	e.visit(func(s setting) {
		if !s.named(importsKey) || s.value.Kind != unstable.Array {
			return
		}
		at, text = e.bracket(s)+1, strconv.Quote(path)
		for it := s.value.Children(); it.Next(); {
			if raw := it.Node().Raw; it.Node().Kind == unstable.String {
				at, text = int(raw.Offset+raw.Length), ", "+strconv.Quote(path)
			}
		}
	})
	e.edits = append(e.edits, edit{at, at, text})
	key := e.docKey(importsKey)
	e.doc[key] = append(append([]any{}, asList(e.doc[key])...), path)
}

func (e *editor) setImports(paths []string) {
	texts, values := make([]string, len(paths)), make([]any, len(paths))
	for i, path := range paths {
		texts[i], values[i] = strconv.Quote(path), path
	}
	list := "[" + strings.Join(texts, ", ") + "]"
	at, text := e.topLine(importsKey + " = " + list + "\n")
	change := edit{at, at, text}
	e.visit(func(s setting) {
		if s.named(importsKey) && s.value.Kind == unstable.Array {
			change = edit{e.bracket(s), s.end, list}
		}
	})
	e.edits = append(e.edits, change)
	e.doc[e.docKey(importsKey)] = values
}

// topLine returns the position for a line above all tables: after the version.
func (e *editor) topLine(line string) (at int, text string) {
	e.visit(func(s setting) {
		if s.named("version") {
			at = e.nextLine(s.end)
		}
	})
	if at == len(e.text) && at > 0 && e.text[at-1] != '\n' {
		return at, "\n" + line
	}
	return at, line
}

// docKey returns a key in the file's spelling: case does not matter.
func (e *editor) docKey(name string) string {
	for key := range e.doc {
		if strings.EqualFold(key, name) {
			return key
		}
	}
	return name
}
