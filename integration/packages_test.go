package integration

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/thinsnap/thinsnap/"

// TestPackageTables compares the package tables of docs/design.md with the code: every package is
// in one of them, and none imports a package above it.
func TestPackageTables(t *testing.T) {
	listed := listedPackages(t)
	imports := packageImports(t)
	for _, pkg := range listed {
		require.Contains(t, imports, pkg, "docs/design.md lists a package that does not exist")
	}
	for pkg := range imports {
		require.Contains(t, listed, pkg, "docs/design.md does not list a package")
	}
	for pkg, imported := range imports {
		for _, other := range imported {
			require.Greater(t, slices.Index(listed, other), slices.Index(listed, pkg),
				"%s imports %s, which stands above it in docs/design.md", pkg, other)
		}
	}
}

// listedPackages returns the packages of the tables from top to bottom. It puts the second table,
// of test packages, first, because tests import the packages of the other.
func listedPackages(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../docs/design.md")
	require.NoError(t, err)
	tables := strings.Split(string(text), "| package | its one job |\n|---|---|\n")
	require.Len(t, tables, 3, "docs/design.md has a table of the product and one of the tests")
	var all []string
	for _, table := range []string{tables[2], tables[1]} {
		rows, _, _ := strings.Cut(table, "\n\n")
		for row := range strings.Lines(rows) {
			names, _, _ := strings.Cut(strings.TrimPrefix(row, "| "), " | ")
			for _, name := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(names, -1) {
				require.NotContains(t, all, name[1], "docs/design.md lists a package twice")
				all = append(all, name[1])
			}
		}
	}
	return all
}

// packageImports returns the packages of this module, each with those that its code without tests
// imports.
func packageImports(t *testing.T) map[string][]string {
	t.Helper()
	imports := make(map[string][]string)
	require.NoError(t, filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() {
			if name != ".." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		pkg, err := filepath.Rel("..", filepath.Dir(path))
		if err != nil {
			return err
		}
		if imports[pkg] == nil {
			imports[pkg] = []string{}
		}
		if strings.HasSuffix(name, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if rest, ours := strings.CutPrefix(imported, module); ours {
				imports[pkg] = append(imports[pkg], rest)
			}
		}
		return nil
	}))
	return imports
}
