package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestNeedsFollowTheTree: needs has all packages that use containerd and the images, and only packages with kernel
// tests.
func TestNeedsFollowTheTree(t *testing.T) {
	packages, err := findPackages(t.Context(), []string{modulePath + "..."}, "")
	require.NoError(t, err)
	var found []string
	for _, p := range packages {
		name := strings.TrimPrefix(p.ImportPath, modulePath)
		found = append(found, name)
		if slices.Contains(append(p.TestImports, p.XTestImports...), modulePath+"integration/harness/harnesstest") {
			require.Contains(t, needs()[name], "test-images", name)
		}
	}
	for name := range needs() {
		require.Contains(t, found, name)
	}
}

// TestNeedsAreTargets: the names are targets of the Makefile.
func TestNeedsAreTargets(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	require.NoError(t, err)
	for _, targets := range needs() {
		for _, target := range targets {
			require.Regexp(t, `(?m)^`+target+`:`, string(makefile))
		}
	}
}

func TestNeeded(t *testing.T) {
	require.Empty(t, needed([]testPackage{{ImportPath: modulePath + "devmapper"}}))
	require.Equal(t, []string{"test-browser", "test-failpoints", "test-images", "test-thorough-image"}, needed([]testPackage{
		{ImportPath: modulePath + "integration/failpoint"}, {ImportPath: modulePath + "integration"},
	}))
}

// TestFindPackages: packages without a matching test are left out.
func TestFindPackages(t *testing.T) {
	patterns := []string{modulePath + "devmapper", modulePath + "devmapper/pool"}
	for run, want := range map[string][]string{
		"":                             patterns,
		"ReportsMissingDevice":         patterns[:1],
		"ReportsMissingDevice/subtest": patterns[:1],
		"NoSuchTest":                   nil,
	} {
		packages, err := findPackages(t.Context(), patterns, run)
		require.NoError(t, err)
		var paths []string
		for _, p := range packages {
			paths = append(paths, p.ImportPath)
		}
		require.Equal(t, want, paths, run)
	}
}
