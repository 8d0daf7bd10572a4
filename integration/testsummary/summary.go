package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

// event is an event of `go tool test2json`.
type event struct{ Action, Package, Test, Output string }

// read reads reports in order. A missing report is empty.
func read(files []string) (events []event, err error) {
	for _, name := range files {
		file, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		defer file.Close()
		for decoder := json.NewDecoder(file); ; {
			var e event
			if err := decoder.Decode(&e); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, fmt.Errorf("read %s: %w", name, err)
			}
			events = append(events, e)
		}
	}
	return events, nil
}

// result is the result of one test in all its runs: a failure outweighs a pass, and a pass a skip. A test without a
// result has crashed.
type result struct {
	failed, passed, skipped int
	reason                  string // of a skip; may be empty
}

func (r *result) String() string {
	switch {
	case r.failed > 0 || r.passed+r.skipped == 0:
		return "failed"
	case r.passed > 0:
		return "passed"
	}
	return "skipped"
}

var skipReason = regexp.MustCompile(`^ +\S+\.(?:go|sh):\d+: (.*)\n`)

func results(events []event) map[string]*result {
	tests := make(map[string]*result)
	for _, e := range events {
		if e.Test == "" {
			continue
		}
		key := e.Package + " " + e.Test
		r := tests[key]
		if r == nil {
			r = new(result)
			tests[key] = r
		}
		switch e.Action {
		case "fail":
			r.failed++
		case "pass":
			r.passed++
		case "skip":
			r.skipped++
		}
		if found := skipReason.FindStringSubmatch(e.Output); found != nil && r.reason == "" {
			r.reason = found[1]
		}
	}
	return tests
}

// summarize returns the lines to print, and whether all required tests ran: those with a real kernel, and those that
// are not in the list of allowed skips.
func summarize(unit, vuln, kernel []event, allowed []string) (lines []string, ok bool) {
	ok = true
	missing := func(format string, args ...any) { lines, ok = append(lines, fmt.Sprintf(format, args...)), false }
	if len(unit) == 0 {
		missing("no unit test ran")
	}
	if len(vuln) == 0 {
		missing("known vulnerabilities were not looked for")
	}
	withKernel := results(kernel)
	if len(withKernel) == 0 {
		missing("no test ran with a real kernel")
	}
	all := slices.Concat(unit, vuln, kernel)
	tests, count := results(all), make(map[string]int)
	for _, test := range slices.Sorted(maps.Keys(withKernel)) {
		isSubtest := strings.Contains(test[strings.Index(test, " "):], "/")
		// A pass without a kernel does not replace a run with a kernel. A subtest skipped in all runs is listed below.
		isListed := slices.Contains(allowed, test) || isSubtest && tests[test].String() == "skipped"
		if withKernel[test].String() == "skipped" && !isListed {
			missing("did not run with a real kernel: %s", test)
		}
	}
	failed := make(map[string]bool) // packages with a failed test
	for _, test := range slices.Sorted(maps.Keys(tests)) {
		r := tests[test]
		count[r.String()]++
		pkg, _, _ := strings.Cut(test, " ")
		reason := cmp.Or(r.reason, "no reason given")
		failed[pkg] = failed[pkg] || r.String() == "failed"
		switch {
		case r.String() != "skipped":
		case slices.Contains(allowed, test):
			lines = append(lines, fmt.Sprintf("skipped: %s: %s", test, reason))
		default:
			missing("must not be skipped: %s: %s", test, reason)
		}
	}
	for _, e := range all {
		// A package can fail without a failed test: it did not build, or it crashed.
		if e.Test == "" && e.Action == "fail" && !failed[e.Package] {
			failed[e.Package] = true
			count["failed"]++
			lines = append(lines, "failed: "+e.Package)
		}
	}
	return append(lines, fmt.Sprintf("%d passed, %d failed, %d skipped", count["passed"], count["failed"],
		count["skipped"])), ok
}
