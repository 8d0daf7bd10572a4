package main

import (
	"slices"
	"strings"
)

// modulePath is the prefix of the packages' import paths.
const modulePath = "github.com/thinsnap/thinsnap/"

// needs maps each package to the Makefile's targets that its kernel tests need. Other packages need only a guest.
func needs() map[string][]string {
	return map[string][]string{
		"integration":             {"test-images", "test-browser", "test-thorough-image"},
		"integration/adoption":    {"test-images", "test-failpoints"},
		"integration/conformance": {"test-images"},
		"integration/failpoint":   {"test-images", "test-failpoints"},
		"integration/kubernetes":  {"test-images"},
		"integration/machine":     {"test-images"},
		"packaging/debian":        {"test-deb"},
	}
}

// needed returns the targets of all packages, sorted, each once.
func needed(packages []testPackage) []string {
	table := needs()
	var targets []string
	for _, p := range packages {
		targets = append(targets, table[strings.TrimPrefix(p.ImportPath, modulePath)]...)
	}
	slices.Sort(targets)
	return slices.Compact(targets)
}
