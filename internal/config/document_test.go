package config

import (
	"flag"
	"os"
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write docs/configuration.md instead of comparing it")

// TestReference compares docs/configuration.md with the descriptions in the code.
func TestReference(t *testing.T) {
	const file = "../../docs/configuration.md"
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(reference()), 0o644))
	}
	written, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, reference(), string(written), "go generate ./internal/config rewrites the file")
}

func TestDefaultFileIsTheDefault(t *testing.T) {
	cfg, err := Parse([]byte(DefaultFile()))
	require.NoError(t, err)
	require.Equal(t, Default(), cfg)
	require.Contains(t, DefaultFile(), "# The unit in which the pool allocates space")
	require.Contains(t, DefaultFile(), "\nblock_size = \"64KiB\"\n")
}

// TestEveryFieldIsDescribed fails for a field of Config without a description, and for a
// description without a field.
func TestEveryFieldIsDescribed(t *testing.T) {
	var described []string
	for _, s := range sections() {
		for _, k := range s.keys {
			described = append(described, k.name)
			require.NotEmpty(t, k.doc, k.name)
		}
	}
	var fields []string
	var walk func(prefix string, structure reflect.Type)
	walk = func(prefix string, structure reflect.Type) {
		for field := range structure.Fields() {
			name := prefix + field.Tag.Get("toml")
			if field.Type.Kind() == reflect.Struct {
				walk(name+".", field.Type)
				continue
			}
			if field.Type.Kind() == reflect.Slice && field.Type.Elem().Kind() == reflect.Struct {
				walk(name+".", field.Type.Elem())
				continue
			}
			fields = append(fields, name)
		}
	}
	walk("", reflect.TypeFor[Config]())
	require.ElementsMatch(t, fields, described)
}
