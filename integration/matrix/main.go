// Command matrix records the kernels on which each client passed its tests: it reads reports of `go test -json`, and
// updates support.json and the table of support.md in a directory.
//
// A cell is a test with the attribute harness.CellAttribute. A new run replaces the cell of the same client, series of
// versions and series of kernels. Other cells keep their results and dates.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: matrix DIRECTORY REPORT.json...")
		os.Exit(2)
	}
	failed, err := run(os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "matrix:", err)
	}
	if err != nil || failed {
		os.Exit(1)
	}
}

// run updates the record, and reports whether a cell of the reports failed.
func run(dir string, reports []string) (failed bool, err error) {
	recorded, err := readRecord(dir)
	if err != nil {
		return false, err
	}
	var cells []cell
	for _, report := range reports {
		file, err := os.Open(report)
		if err != nil {
			return false, err
		}
		found, err := cellsOf(file)
		file.Close()
		if err != nil {
			return false, fmt.Errorf("read %s: %w", report, err)
		}
		cells = append(cells, found...)
	}
	if len(cells) == 0 {
		return false, errors.New("the reports have no cell: no client was tested")
	}
	for _, c := range cells {
		fmt.Println(c)
		failed = failed || len(c.Failed) > 0
	}
	return failed, writeRecord(dir, merge(recorded, cells))
}

// record is the content of support.json.
type record struct {
	Cells []cell `json:"cells"`
}

func readRecord(dir string) ([]cell, error) {
	content, err := os.ReadFile(filepath.Join(dir, "support.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(content, &r); err != nil {
		return nil, fmt.Errorf("read support.json: %w", err)
	}
	return r.Cells, nil
}

func writeRecord(dir string, cells []cell) error {
	page := filepath.Join(dir, "support.md")
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	text, err = withTable(text, cells)
	if err != nil {
		return fmt.Errorf("write %s: %w", page, err)
	}
	content, err := json.MarshalIndent(record{cells}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "support.json"), append(content, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(page, text, 0o644)
}
