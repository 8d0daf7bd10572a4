package setup

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// A block is a table to write to a file, with a comment above it.
type block struct {
	key     []string
	value   any // a table or a list of tables
	comment string
}

// render writes sections below a header, and fails if the text would not decode to them.
func render(head string, version int, sections []block) (string, error) {
	var b strings.Builder
	b.WriteString(head)
	doc := make(map[string]any)
	if version > 0 {
		fmt.Fprintf(&b, "version = %d\n", version)
		doc["version"] = int64(version)
	}
	for _, s := range sections {
		b.WriteString("\n")
		for line := range strings.Lines(s.comment) {
			b.WriteString("# " + strings.TrimSuffix(line, "\n") + "\n")
		}
		if err := writeTable(&b, s.key, s.value); err != nil {
			return "", err
		}
		place := doc
		for _, part := range s.key[:len(s.key)-1] {
			inner, isTable := place[part].(map[string]any)
			if !isTable {
				inner = make(map[string]any)
				place[part] = inner
			}
			place = inner
		}
		place[s.key[len(s.key)-1]] = s.value
	}
	var got map[string]any
	if err := toml.Unmarshal([]byte(b.String()), &got); err != nil || !reflect.DeepEqual(got, doc) {
		return "", fmt.Errorf("this version of thinsnap cannot repeat the section in another file: change it by "+
			"hand: %w", errdefs.ErrNotImplemented)
	}
	return b.String(), nil
}

// writeTable writes a table with its subtables, or a list of tables.
func writeTable(b *strings.Builder, key []string, value any) error {
	if list, isList := value.([]any); isList {
		for i, item := range list {
			table, isTable := item.(map[string]any)
			if !isTable {
				return fmt.Errorf("%s[%d] is not a table: %w", dotted(key), i, errdefs.ErrNotImplemented)
			}
			fmt.Fprintf(b, "[[%s]]\n", dotted(key))
			if err := writeKeys(b, key, table); err != nil {
				return err
			}
		}
		return nil
	}
	table, isTable := value.(map[string]any)
	if !isTable {
		return fmt.Errorf("%s is not a table: %w", dotted(key), errdefs.ErrNotImplemented)
	}
	fmt.Fprintf(b, "[%s]\n", dotted(key))
	return writeKeys(b, key, table)
}

// writeKeys writes the values of a table, and then its subtables.
func writeKeys(b *strings.Builder, key []string, table map[string]any) error {
	names := slices.Sorted(maps.Keys(table))
	for _, name := range names {
		if isTables(table[name]) {
			continue
		}
		text, err := toml.Marshal(map[string]any{"x": table[name]})
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "  %s%s", tomlKey(name), strings.TrimPrefix(string(text), "x"))
	}
	for _, name := range names {
		if !isTables(table[name]) {
			continue
		}
		if err := writeTable(b, append(slices.Clone(key), name), table[name]); err != nil {
			return err
		}
	}
	return nil
}

// isTables reports whether a value is a table, or a list with a table.
func isTables(value any) bool {
	list, isList := value.([]any)
	if isList {
		return slices.ContainsFunc(list, isTables)
	}
	_, isTable := value.(map[string]any)
	return isTable
}

func dotted(key []string) string {
	parts := make([]string, len(key))
	for i, part := range key {
		parts[i] = tomlKey(part)
	}
	return strings.Join(parts, ".")
}

// tomlKey returns a part of a key as in containerd's own dump: in single quotes where it needs
// quotes.
func tomlKey(name string) string {
	text := quoted(name)
	if text != name && !strings.ContainsAny(name, "'\n\r") {
		return "'" + name + "'"
	}
	return text
}
