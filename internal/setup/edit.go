package setup

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// An editor plans changes of a file, both of its text and of its decoded content. verify compares
// the two.
type editor struct {
	file
	edits []edit
	doc   map[string]any // the decoded content after the changes
}

// An edit replaces the bytes from at to end.
type edit struct {
	at, end int
	text    string
}

func newEditor(f file) (*editor, error) {
	e := &editor{file: f}
	if err := toml.Unmarshal(f.text, &e.doc); err != nil {
		return nil, fmt.Errorf("%s: %s: %w", f.path, place(err), errdefs.ErrInvalidArgument)
	}
	if e.doc == nil {
		e.doc = make(map[string]any)
	}
	return e, nil
}

// A setting is a key with its value. The key may be in an inline table.
type setting struct {
	key   []string // all parts, from the top
	after int      // the end of the key's text
	end   int      // the end of the value's text
	value *unstable.Node
}

// named reports whether the key is the given single part. TOML decoders for Go ignore case.
func (s setting) named(name string) bool { return len(s.key) == 1 && strings.EqualFold(s.key[0], name) }

// isSnapshotter reports whether the value is the name of a snapshotter in a plugin's section.
func (s setting) isSnapshotter() bool {
	last := len(s.key) - 1
	return last > 0 && strings.EqualFold(s.key[0], "plugins") && strings.EqualFold(s.key[last], "snapshotter")
}

// visit calls f for each setting of the file, in order.
func (e *editor) visit(f func(setting)) {
	var p unstable.Parser
	p.Reset(e.text)
	var table []string
	for p.NextExpression() {
		x := p.Expression()
		if x.Kind == unstable.KeyValue {
			visitSetting(table, x, f)
			continue
		}
		table, _ = parts(nil, x.Key())
	}
}

func visitSetting(table []string, x *unstable.Node, f func(setting)) {
	key, after := parts(table, x.Key())
	f(setting{key, after, int(x.Raw.Offset + x.Raw.Length), x.Value()})
	visitInner(key, x.Value(), f)
}

func visitInner(key []string, value *unstable.Node, f func(setting)) {
	if value.Kind != unstable.InlineTable && value.Kind != unstable.Array {
		return
	}
	for it := value.Children(); it.Next(); {
		if it.Node().Kind == unstable.KeyValue {
			visitSetting(key, it.Node(), f)
			continue
		}
		visitInner(key, it.Node(), f)
	}
}

// parts appends the parts of a key to those of its table, and returns the end of the key's text.
func parts(table []string, it unstable.Iterator) (key []string, end int) {
	key = slices.Clone(table)
	for it.Next() {
		key = append(key, string(it.Node().Data))
		end = int(it.Node().Raw.Offset + it.Node().Raw.Length)
	}
	return key, end
}

// rename replaces the value of each plugin's key "snapshotter" that has the value old.
func (e *editor) rename(old, name string) {
	e.visit(func(s setting) {
		if !s.isSnapshotter() || s.value.Kind != unstable.String || string(s.value.Data) != old {
			return
		}
		at := int(s.value.Raw.Offset)
		text := strconv.Quote(name)
		if e.text[at] == '\'' {
			text = "'" + name + "'"
		}
		e.edits = append(e.edits, edit{at, at + int(s.value.Raw.Length), text})
	})
	for key, value := range e.doc {
		if strings.EqualFold(key, "plugins") {
			renameIn(value, old, name)
		}
	}
}

// renameIn is rename for a decoded value.
func renameIn(value any, old, name string) {
	switch v := value.(type) {
	case map[string]any:
		for key, inner := range v {
			if strings.EqualFold(key, "snapshotter") && inner == old {
				v[key] = name
			}
			renameIn(inner, old, name)
		}
	case []any:
		for _, inner := range v {
			renameIn(inner, old, name)
		}
	}
}

// dropBuiltin removes the built-in from a list of plugins. The list becomes one line.
func (e *editor) dropBuiltin(list string) {
	e.visit(func(s setting) {
		if !s.named(list) || s.value.Kind != unstable.Array {
			return
		}
		var kept []string
		dropped := false
		for it := s.value.Children(); it.Next(); {
			if isBuiltin(string(it.Node().Data)) {
				dropped = true
				continue
			}
			kept = append(kept, string(e.text[it.Node().Raw.Offset:it.Node().Raw.Offset+it.Node().Raw.Length]))
		}
		if dropped {
			e.edits = append(e.edits, edit{e.bracket(s), s.end, "[" + strings.Join(kept, ", ") + "]"})
		}
	})
	for key, value := range e.doc {
		if items, isList := value.([]any); isList && strings.EqualFold(key, list) {
			e.doc[key] = slices.DeleteFunc(items, func(item any) bool {
				name, isName := item.(string)
				return isName && isBuiltin(name)
			})
		}
	}
}

// bracket returns the position of the first bracket or brace of a setting's value.
func (e *editor) bracket(s setting) int { return s.after + bytes.IndexAny(e.text[s.after:], "[{") }

// disable adds a name to disabled_plugins.
func (e *editor) disable(name string) {
	const list = "disabled_plugins"
	at, text := 0, fmt.Sprintf("%s = [%q]\n", list, name)
	e.visit(func(s setting) {
		switch {
		case s.named("version") && at == 0:
			at = e.nextLine(s.end)
		case s.named(list) && s.value.Kind == unstable.Array:
			at, text = e.bracket(s)+1, strconv.Quote(name)
			if s.value.Child().Valid() {
				text += ", "
			}
		}
	})
	if at == len(e.text) && at > 0 && e.text[at-1] != '\n' {
		text = "\n" + text
	}
	e.edits = append(e.edits, edit{at, at, text})
	e.doc[list] = append([]any{name}, asList(e.doc[list])...)
}

func asList(value any) []any {
	items, _ := value.([]any)
	return items
}

// nextLine returns the start of the line after a position.
func (e *editor) nextLine(at int) int {
	if i := bytes.IndexByte(e.text[at:], '\n'); i >= 0 {
		return at + i + 1
	}
	return len(e.text)
}

// addProxy adds the proxy's section: to proxy_plugins if that is an inline table, and otherwise at
// the end of the file.
func (e *editor) addProxy(s Switch) {
	const tables = "proxy_plugins"
	name := quoted(s.Proxy)
	at := len(e.text)
	text := fmt.Sprintf("\n[%[1]s.%[2]s]\n  type = %[3]q\n  address = %[4]q\n  platform = %[5]q\n"+
		"  capabilities = [\"remap-ids\"]\n  [%[1]s.%[2]s.exports]\n    root = %[6]q\n",
		tables, name, snapshotType, s.Address, s.Platform, s.Root)
	if at > 0 && e.text[at-1] != '\n' {
		text = "\n" + text
	}
	e.visit(func(found setting) {
		if !found.named(tables) || found.value.Kind != unstable.InlineTable {
			return
		}
		at = e.bracket(found) + 1
		text = fmt.Sprintf(" %s = { type = %q, address = %q, platform = %q, capabilities = [\"remap-ids\"], "+
			"exports = { root = %q } }", name, snapshotType, s.Address, s.Platform, s.Root)
		if found.value.Child().Valid() {
			text += ","
		}
	})
	e.edits = append(e.edits, edit{at, at, text})
	proxies, isTable := e.doc[tables].(map[string]any)
	if !isTable {
		proxies = make(map[string]any)
		e.doc[tables] = proxies
	}
	proxies[s.Proxy] = map[string]any{
		"type": snapshotType, "address": s.Address, "platform": s.Platform, "capabilities": []any{"remap-ids"},
		"exports": map[string]any{"root": s.Root},
	}
}

// verify fails if the changed text does not decode to the planned content.
func (e *editor) verify() error {
	_, err := e.verified()
	return err
}

// verified returns the changed text. It fails if the text does not decode to the planned content.
func (e *editor) verified() ([]byte, error) {
	slices.SortStableFunc(e.edits, func(a, b edit) int { return a.at - b.at })
	var changed []byte
	at := 0
	for _, x := range e.edits {
		changed = append(append(changed, e.text[at:x.at]...), x.text...)
		at = x.end
	}
	changed = append(changed, e.text[at:]...)
	var got map[string]any
	err := toml.Unmarshal(changed, &got)
	if err == nil && (reflect.DeepEqual(got, e.doc) || len(got)+len(e.doc) == 0) {
		return changed, nil
	}
	return nil, fmt.Errorf("%s: this version of thinsnap cannot change a file of this form: change "+
		"it by hand, as docs/migration.md says: %w", e.path, errdefs.ErrNotImplemented)
}
