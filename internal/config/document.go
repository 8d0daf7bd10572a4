package config

import (
	"encoding"
	"fmt"
	"reflect"
	"strings"
)

//go:generate go test . -run Reference -update

// width is the line length of comments in the printed file.
const width = 100

// DefaultFile returns a configuration file with every key, its default and a comment. Parse reads
// it as Default.
func DefaultFile() string {
	var b strings.Builder
	b.WriteString("# Configuration of thinsnap. Every key is optional; the values in this file are the defaults.\n")
	b.WriteString("# Sizes are strings with a binary unit (\"64KiB\", \"10GiB\"), or plain numbers of bytes. Shares are strings\n")
	b.WriteString("# with a percent sign (\"80%\"), or whole numbers (80).\n")
	for _, s := range sections() {
		b.WriteByte('\n')
		if s.name != "" {
			comment(&b, s.doc)
			if s.isList() {
				b.WriteString("#\n# For example:\n# " + s.header() + "\n")
			} else {
				b.WriteString(s.header() + "\n")
			}
		}
		for i, k := range s.keys {
			if i > 0 {
				b.WriteByte('\n')
			}
			comment(&b, k.doc+" Must be "+k.allowed+".")
			mark := ""
			if s.isList() {
				mark = "# "
			}
			fmt.Fprintf(&b, "%s%s = %s\n", mark, leaf(k.name), shownValue(k.name))
		}
	}
	return b.String()
}

func reference() string {
	var b strings.Builder
	b.WriteString(`# Configuration

<!-- Written by "go generate ./internal/config" from the descriptions in the code. -->

thinsnap reads ` + "`" + DefaultPath + "`" + `, or the file that ` + "`--config`" + ` names. The file and every key are optional: the
defaults create a pool in two files below the root directory. An error for an unknown key or an invalid value names the
line or the key. A change takes effect when the daemon is restarted.

- ` + "`thinsnap config default`" + ` prints a file with every key, its default and a comment.
- ` + "`thinsnap config check [FILE]`" + ` checks a file.
- ` + "`thinsnap serve --root`, `--address`, `--admin-address` and `--log-level`" + ` override their keys.

Sizes are strings with a binary unit, such as ` + "`\"64KiB\"`" + ` or ` + "`\"10GiB\"`" + ` (` + "`\"10G\"`" + ` and ` + "`\"10GB\"`" + ` mean the same), or numbers of
bytes. Shares are strings with a percent sign, such as ` + "`\"80%\"`" + `, or whole numbers (` + "`80`" + `).
`)
	for _, s := range sections() {
		b.WriteByte('\n')
		if s.name != "" {
			fmt.Fprintf(&b, "## `%s`\n\n%s\n", s.header(), s.doc)
		} else {
			b.WriteString("## Top level\n")
		}
		for _, k := range s.keys {
			kind := "Default"
			if s.isList() {
				kind = "Example"
			}
			fmt.Fprintf(&b, "\n### `%s`\n\n%s: `%s`. Must be %s.\n\n%s\n", k.name, kind, shownValue(k.name), k.allowed, k.doc)
		}
	}
	return b.String()
}

// comment writes a text as wrapped TOML comments.
func comment(b *strings.Builder, text string) {
	line := "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = "#"
		}
		line += " " + word
	}
	b.WriteString(line + "\n")
}

// leaf returns the last part of a dotted name.
func leaf(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// shownValue returns a key's default as TOML, or the example of a key in a list of tables.
func shownValue(name string) string {
	if value, is := example(name); is {
		return literal(value)
	}
	return defaultOf(name)
}

// defaultOf returns a key's default as TOML.
func defaultOf(name string) string {
	value := reflect.ValueOf(Default())
	for part := range strings.SplitSeq(name, ".") {
		value = fieldByTag(value, part)
	}
	return literal(value.Interface())
}

func fieldByTag(structure reflect.Value, tag string) reflect.Value {
	for i := range structure.NumField() {
		if structure.Type().Field(i).Tag.Get("toml") == tag {
			return structure.Field(i)
		}
	}
	panic("config: no field for key " + tag)
}

func literal(value any) string {
	switch v := value.(type) {
	case encoding.TextMarshaler, string:
		return fmt.Sprintf("%q", v)
	case []string:
		quoted := make([]string, 0, len(v))
		for _, s := range v {
			quoted = append(quoted, literal(s))
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	default:
		return fmt.Sprint(v)
	}
}
