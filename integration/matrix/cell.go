package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/thinsnap/thinsnap/integration/harness"
)

// cell is the result of one version of a client on one kernel.
type cell struct {
	Client  string `json:"client"`
	Version string `json:"version"`
	Kernel  string `json:"kernel"`
	Date    string `json:"date"` // such as 2026-11-30, UTC
	Test    string `json:"test"` // name of the Go function
	// Passed and Failed are its subtests, in the order of their ends. A test that fails outside of its subtests is in
	// Failed.
	Passed []string `json:"passed,omitempty"`
	Failed []string `json:"failed,omitempty"`
}

// String describes the cell in one line.
func (c cell) String() string {
	result := "passed"
	if len(c.Failed) > 0 {
		result = "FAILED: " + strings.Join(c.Failed, ", ")
	}
	return fmt.Sprintf("%s %s, Linux %s: %s", c.Client, c.Version, c.Kernel, result)
}

// series are the first two numbers of a version.
var series = regexp.MustCompile(`^\d+\.\d+`)

// replaces reports whether c, which ran later, is of the same client, series of versions and series of kernels. A
// user-mode kernel has cells of its own.
func (c cell) replaces(other cell) bool {
	return c.Client == other.Client && series.FindString(c.Version) == series.FindString(other.Version) &&
		series.FindString(c.Kernel) == series.FindString(other.Kernel) &&
		strings.HasSuffix(c.Kernel, harness.UserMode) == strings.HasSuffix(other.Kernel, harness.UserMode)
}

// event is an event of `go tool test2json`.
type event struct {
	Time                              time.Time
	Action, Package, Test, Key, Value string
}

// cellsOf reads the cells of a report, in the order of their starts. A skipped test outside of all cells is an error,
// because it may be a cell.
func cellsOf(report io.Reader) ([]cell, error) {
	var cells []*cell
	var skipped []string
	byTest := make(map[string]*cell)
	ended := make(map[*cell]bool)
	for decoder := json.NewDecoder(report); ; {
		var e event
		if err := decoder.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		test := e.Package + " " + e.Test
		if e.Action == "skip" && e.Test != "" && !inCell(byTest, test) {
			skipped = append(skipped, e.Test)
		}
		if e.Action == "attr" && e.Key == harness.CellAttribute {
			parts := strings.Split(e.Value, "\t")
			if len(parts) != 3 {
				return nil, fmt.Errorf("%s: the attribute %q has %d parts, not 3", test, e.Value, len(parts))
			}
			c := &cell{Client: parts[0], Version: parts[1], Kernel: parts[2], Date: e.Time.UTC().Format(time.DateOnly)}
			c.Test, _, _ = strings.Cut(e.Test, "/")
			cells, byTest[test] = append(cells, c), c
		}
		if at := strings.LastIndex(test, "/"); at >= 0 && byTest[test[:at]] != nil {
			byTest[test[:at]].add(test[at+1:], e.Action)
		}
		if c := byTest[test]; c != nil && (e.Action == "pass" || e.Action == "fail" || e.Action == "skip") {
			ended[c] = true
			if e.Action == "fail" && c.Failed == nil {
				c.Failed = []string{c.Test}
			} else if e.Action == "skip" {
				c.Failed = append(c.Failed, "was skipped")
			}
		}
	}
	if len(skipped) > 0 {
		return nil, fmt.Errorf("skipped, so a cell may be missing: %s", strings.Join(skipped, ", "))
	}
	found := make([]cell, 0, len(cells))
	for _, c := range cells {
		if !ended[c] {
			c.Failed = append(c.Failed, "did not end")
		}
		found = append(found, *c)
	}
	return found, nil
}

// inCell reports whether a test is a cell or a part of one.
func inCell(byTest map[string]*cell, test string) bool {
	for {
		if byTest[test] != nil {
			return true
		}
		at := strings.LastIndex(test, "/")
		if at < 0 {
			return false
		}
		test = test[:at]
	}
}

func (c *cell) add(name, action string) {
	name = strings.ReplaceAll(name, "_", " ")
	switch action {
	case "pass":
		c.Passed = append(c.Passed, name)
	case "fail":
		c.Failed = append(c.Failed, name)
	}
}

// merge returns the recorded cells, replaced or extended by those that ran.
func merge(recorded, ran []cell) []cell {
	merged := slices.Clone(recorded)
	for _, c := range ran {
		merged = slices.DeleteFunc(merged, c.replaces)
		merged = append(merged, c)
	}
	slices.SortFunc(merged, compare)
	return merged
}

// compare sorts by client, then by newest version, then by oldest kernel.
func compare(a, b cell) int {
	if n := strings.Compare(strings.ToLower(a.Client), strings.ToLower(b.Client)); n != 0 {
		return n
	}
	if n := slices.Compare(numbers(b.Version), numbers(a.Version)); n != 0 {
		return n
	}
	return slices.Compare(numbers(a.Kernel), numbers(b.Kernel))
}

func numbers(version string) (all []int) {
	for _, digits := range regexp.MustCompile(`\d+`).FindAllString(version, -1) {
		n := 0
		for _, d := range digits {
			n = n*10 + int(d-'0')
		}
		all = append(all, n)
	}
	return all
}
