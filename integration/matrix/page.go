package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

const tableHead = "| client | version | Linux | result | date | tests |\n|---|---|---|---|---|---|\n"

var errNoTable = errors.New("it has no table with the expected columns")

// withTable returns a page whose table shows the cells.
func withTable(page []byte, cells []cell) ([]byte, error) {
	before, after, found := bytes.Cut(page, []byte(tableHead))
	if !found {
		return nil, errNoTable
	}
	for bytes.HasPrefix(after, []byte("|")) {
		_, after, _ = bytes.Cut(after, []byte("\n"))
	}
	var b bytes.Buffer
	b.Write(before)
	b.WriteString(tableHead)
	for _, c := range cells {
		result, ran := "passed", "`"+c.Test+"`"
		if len(c.Passed) > 0 {
			ran += ": " + strings.Join(c.Passed, ", ")
		}
		if len(c.Failed) > 0 {
			result = "**failed**: " + strings.Join(c.Failed, ", ")
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", c.Client, c.Version, c.Kernel, result, c.Date, ran)
	}
	b.Write(after)
	return b.Bytes(), nil
}
