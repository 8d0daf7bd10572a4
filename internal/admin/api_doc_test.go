package admin

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/check"
)

const (
	apiDoc    = "../../docs/api.md"
	apiMarker = "<!-- What follows is written by \"go test ./internal/admin -run TestAPIIsDocumented -update\". -->\n"
)

// TestAPIIsDocumented compares docs/api.md with the routes, the types of their answers and the
// comments on these, and with answers of a server.
func TestAPIIsDocumented(t *testing.T) {
	written, err := os.ReadFile(apiDoc)
	require.NoError(t, err)
	prose, _, found := strings.Cut(string(written), apiMarker)
	require.True(t, found)
	text := prose + apiMarker + apiReference(t)
	if *update {
		require.NoError(t, os.WriteFile(apiDoc, []byte(text), 0o600))
		return
	}
	require.Equal(t, text, string(written))
}

// exampleTime is the time of all examples.
func exampleTime() time.Time { return time.Date(2026, 11, 30, 10, 0, 0, 0, time.UTC) }

func apiReference(t *testing.T) string {
	all := routes(exampleBackend{}, exampleDaemon(), exampleMetrics(t), exampleRecorder())
	var b strings.Builder
	b.WriteString("\n## Paths\n\n| request | what it does |\n|---|---|\n")
	for _, r := range all {
		first, _, _ := strings.Cut(strings.TrimSuffix(r.doc, "."), ". ")
		fmt.Fprintf(&b, "| [`%s %s`](#%s) | %s. |\n", r.method, r.path, anchor(r.method+" "+r.path), first)
	}
	b.WriteString("\nEach type has one example: that of Pool and StoreClient is in the answer of `GET /v1/info`.\n")
	types := []reflect.Type{}
	for _, r := range all {
		writeRoute(t, &b, r, !slices.Contains(types, r.answer))
		types = collect(types, r.answer)
	}
	comments := fieldComments(t)
	b.WriteString("\n## Types\n\nAn *optional* field is absent if its value is unknown, empty, 0 or false.\n")
	slices.SortFunc(types, func(x, y reflect.Type) int { return strings.Compare(x.Name(), y.Name()) })
	for _, typ := range types {
		writeType(t, &b, typ, comments)
	}
	return b.String()
}

// writeRoute writes a path, and its answer if withExample is set.
func writeRoute(t *testing.T, b *strings.Builder, r route, withExample bool) {
	fmt.Fprintf(b, "\n### %s %s\n\n%s\n\n", r.method, r.path, r.doc)
	query := url.Values{}
	if len(r.params) > 0 {
		b.WriteString("| parameter | what it is |\n|---|---|\n")
		for _, p := range r.params {
			fmt.Fprintf(b, "| `%s` | %s |\n", p.name, p.doc)
			query.Set(p.name, map[string]string{
				"key": "default/7/box", "data_bytes": "214748364800", "metadata_bytes": "134217728", "device_id": "61", "labels": "no",
				"client": "k3s",
			}[p.name])
		}
		b.WriteString("\n")
	}
	target := r.path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	answer, err := r.call(t.Context(), query)
	require.NoError(t, err)
	example, err := json.MarshalIndent(answer, "", "  ")
	require.NoError(t, err)
	example = regexp.MustCompile(`"uptime_seconds": \d+`).ReplaceAll(example, []byte(`"uptime_seconds": 3600`))
	fmt.Fprintf(b, "Answer: %s.\n", linkTo(r.answer))
	switch {
	case withExample:
		fmt.Fprintf(b, "\n```\n%s %s\n\n%s\n```\n", r.method, target, example)
	case len(query) > 0:
		fmt.Fprintf(b, "\n```\n%s %s\n```\n", r.method, target)
	}
}

func linkTo(typ reflect.Type) string {
	return fmt.Sprintf("[%s](#%s)", typ.Name(), strings.ToLower(typ.Name()))
}

// anchor is GitHub's for a heading.
func anchor(heading string) string {
	return regexp.MustCompile(`[^a-z0-9_ -]`).ReplaceAllString(strings.ToLower(strings.ReplaceAll(heading, " ", "-")), "")
}

// element is the type of a value, of a pointer's and of a list's elements.
func element(typ reflect.Type) (elem reflect.Type, list bool) {
	for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice && typ.Elem().Kind() != reflect.Uint8 {
		list = list || typ.Kind() == reflect.Slice
		typ = typ.Elem()
	}
	return typ, list
}

func isObject(typ reflect.Type) bool {
	return typ.Kind() == reflect.Struct && typ != reflect.TypeFor[time.Time]()
}

// collect adds a type and those of its fields.
func collect(types []reflect.Type, typ reflect.Type) []reflect.Type {
	if slices.Contains(types, typ) {
		return types
	}
	types = append(types, typ)
	for field := range typ.Fields() {
		if elem, _ := element(field.Type); isObject(elem) && field.Tag.Get("json") != "-" {
			types = collect(types, elem)
		}
	}
	return types
}

func writeType(t *testing.T, b *strings.Builder, typ reflect.Type, comments map[string]string) {
	fmt.Fprintf(b, "\n### %s\n\n| field | type | what it is |\n|---|---|---|\n", typ.Name())
	for field := range typ.Fields() {
		name, optional, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		elem, list := element(field.Type)
		if field.Anonymous {
			fmt.Fprintf(b, "| | | all fields of %s |\n", linkTo(elem))
			continue
		}
		requireName(t, typ, name, elem)
		kind := kindOf(t, elem)
		if list {
			kind = "list of " + kind
		}
		if optional != "" {
			kind += ", optional"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", name, kind, comments[typ.Name()+"."+field.Name])
	}
	if typ == reflect.TypeFor[check.Finding]() {
		b.WriteString("\n| `kind` | what it is |\n|---|---|\n" + findingKinds(t))
	}
}

// findingKinds returns the rows of the kinds of findings.
func findingKinds(t *testing.T) string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), "../check/report.go", nil, parser.ParseComments)
	require.NoError(t, err)
	var rows strings.Builder
	ast.Inspect(parsed, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(spec.Names[0].Name, "Kind") {
			return true
		}
		value, ok := spec.Values[0].(*ast.BasicLit)
		require.True(t, ok)
		_, doc, _ := strings.Cut(strings.Join(strings.Fields(spec.Doc.Text()), " "), ": ")
		fmt.Fprintf(&rows, "| `%s` | %s |\n", strings.Trim(value.Value, `"`), strings.TrimSuffix(doc, "."))
		return true
	})
	require.NotEmpty(t, rows.String())
	return rows.String()
}

// requireName fails for a name that does not follow the rules in docs/api.md.
func requireName(t *testing.T, typ reflect.Type, name string, elem reflect.Type) {
	t.Helper()
	where := typ.Name() + "." + name
	require.Regexp(t, `^[a-z][a-z0-9]*(_[a-z0-9]+)*$`, name, where)
	if elem.Kind() != reflect.String && !isObject(elem) {
		require.NotRegexp(t, `^(size|used|total|free|available|bytes|seconds|duration|device|created|updated|since|found)$`, name, where)
	}
	switch {
	case elem == reflect.TypeFor[time.Time]():
		require.Regexp(t, `^(.*_)?at$`, name, where)
	case elem.Kind() == reflect.Float64:
		require.Regexp(t, `_seconds$`, name, where)
	case strings.HasSuffix(name, "_bytes"):
		require.Equal(t, reflect.Uint64, elem.Kind(), where)
	}
}

func kindOf(t *testing.T, typ reflect.Type) string {
	t.Helper()
	switch {
	case typ == reflect.TypeFor[time.Time]():
		return "time"
	case isObject(typ):
		return linkTo(typ)
	}
	kinds := map[reflect.Kind]string{
		reflect.String: "string", reflect.Bool: "boolean", reflect.Uint64: "number", reflect.Uint32: "number", reflect.Int: "number",
		reflect.Int64: "number", reflect.Float64: "number", reflect.Slice: "string", reflect.Map: "object of strings",
	}
	require.Contains(t, kinds, typ.Kind(), typ)
	return kinds[typ.Kind()]
}

// fieldComments returns the comments on the fields of the wire types, by "Type.Field".
func fieldComments(t *testing.T) map[string]string {
	t.Helper()
	comments := make(map[string]string)
	for _, file := range []string{"wire.go", "owners.go", "../check/report.go"} {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		require.NoError(t, err)
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			structure, ok := spec.Type.(*ast.StructType)
			if !ok {
				return false
			}
			for _, field := range structure.Fields.List {
				for _, name := range field.Names {
					text := sentence(name.Name, field.Doc.Text()+" "+field.Comment.Text())
					for _, other := range structure.Fields.List {
						text = jsonName(text, other)
					}
					comments[spec.Name.Name+"."+name.Name] = text
				}
			}
			return false
		})
	}
	return comments
}

// jsonName replaces the Go name of a field by that in JSON, if it cannot be a word.
func jsonName(text string, field *ast.Field) string {
	for _, name := range field.Names {
		if regexp.MustCompile(`^[A-Z][a-z]+[A-Z]`).MatchString(name.Name) && field.Tag != nil {
			tag, _, _ := strings.Cut(reflect.StructTag(strings.Trim(field.Tag.Value, "`")).Get("json"), ",")
			text = strings.ReplaceAll(text, name.Name, "`"+tag+"`")
		}
	}
	return text
}

// sentence returns a comment without the name of its Go field, in one line. Only several sentences end with a period.
func sentence(name, comment string) string {
	text := strings.Join(strings.Fields(comment), " ")
	for _, start := range []string{name + " is ", name + " are ", name + " has ", name + " "} {
		if rest, ok := strings.CutPrefix(text, start); ok {
			text = rest
			break
		}
	}
	if text = strings.TrimSpace(text); !strings.Contains(text, ". ") {
		text = strings.TrimSuffix(text, ".")
	}
	return strings.ReplaceAll(text, "|", "\\|")
}

// TestUnknownParameterAndPath: what a newer client asks an older daemon for is refused as such.
func TestUnknownParameterAndPath(t *testing.T) {
	server := NewServer(t.Context(), exampleBackend{}, exampleDaemon(), exampleMetrics(t), NewRecorder())
	for line, want := range map[string]struct {
		status int
		text   string
	}{
		"GET /v1/pool?client=k3s":                      {http.StatusBadRequest, `GET /v1/pool has no parameter \"client\"`},
		"POST /v1/pool/trim?key=default/7/box&all=yes": {http.StatusBadRequest, `no parameter \"all\"`},
		"POST /v1/pool/shrink":                         {http.StatusNotImplemented, "the daemon, thinsnap 0.1.0, has no POST /v1/pool/shrink"},
	} {
		method, path, _ := strings.Cut(line, " ")
		answer := request(server, method, path)
		require.Equal(t, want.status, answer.Code, line)
		require.Contains(t, answer.Body.String(), want.text, line)
	}
}

// TestFieldsOfAnotherVersion: a client reads answers with fields and values that it does not know, and without others.
func TestFieldsOfAnotherVersion(t *testing.T) {
	var info Info
	require.NoError(t, json.Unmarshal([]byte(`{"daemon": {"version": "0.1.0"}, "new": {"a": 1}, "pool": {"state": "resting"}}`), &info))
	require.Equal(t, "0.1.0", info.Daemon.Version)
	require.Equal(t, "resting", info.Pool.State)
	var report check.Report
	require.NoError(t, json.Unmarshal([]byte(`{"findings": [{"kind": "moon", "subject": "pool", "text": "it is full"}]}`), &report))
	require.Equal(t, check.Kind("moon"), report.Findings[0].Kind)
}
