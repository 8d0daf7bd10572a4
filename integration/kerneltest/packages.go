package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// testPackage is a package with kernel tests. The exported fields are those of `go list -json`.
type testPackage struct {
	ImportPath   string
	Dir          string
	TestGoFiles  []string
	XTestGoFiles []string
	TestImports  []string
	XTestImports []string

	names  []string // of the kernel tests to run
	binary string
}

// findPackages returns the packages with kernel tests whose names match run, an expression for -test.run.
func findPackages(ctx context.Context, patterns []string, run string) ([]testPackage, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"list", "-json"}, patterns...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the packages: %w", err)
	}
	var found []testPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p testPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return found, nil
		} else if err != nil {
			return nil, fmt.Errorf("list the packages: %w", err)
		}
		if err := p.findTests(); err != nil {
			return nil, err
		}
		// In "A/B", B selects subtests: the test binary applies it.
		tests, _, _ := strings.Cut(run, "/")
		if p.names = matching(p.names, tests); len(p.names) > 0 {
			found = append(found, p)
		}
	}
}

func (p *testPackage) findTests() error {
	for _, file := range append(append([]string{}, p.TestGoFiles...), p.XTestGoFiles...) {
		path := filepath.Join(p.Dir, file)
		if !strings.HasSuffix(file, "_kernel_test.go") {
			if err := checkPlain(path); err != nil {
				return err
			}
			continue
		}
		tests, err := testsIn(path)
		if err != nil {
			return err
		}
		p.names = append(p.names, tests...)
	}
	return nil
}

// matching returns the names that match the expression, which must be valid.
func matching(names []string, expression string) []string {
	re := regexp.MustCompile(expression)
	var matches []string
	for _, name := range names {
		if re.MatchString(name) {
			matches = append(matches, name)
		}
	}
	return matches
}

// checkPlain rejects a file with tests that call dmtest.RequireKernel but never get a kernel, because of the file's
// name. Tests of RequireKernel itself call it without the package name.
func checkPlain(path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("look for tests: %w", err)
	}
	if bytes.Contains(content, []byte("dmtest.RequireKernel(")) {
		return fmt.Errorf("%s calls dmtest.RequireKernel: its name must end in _kernel_test.go", path)
	}
	return nil
}

func testsIn(path string) ([]string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, fmt.Errorf("look for tests: %w", err)
	}
	var names []string
	for _, decl := range file.Decls {
		if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && isTest(f.Name.Name) {
			names = append(names, f.Name.Name)
		}
	}
	return names, nil
}

// isTest follows the go command: TestMain is no test, nor is Testimony.
func isTest(name string) bool {
	rest, ok := strings.CutPrefix(name, "Test")
	first, _ := utf8.DecodeRuneInString(rest)
	return ok && name != "TestMain" && !unicode.IsLower(first)
}
