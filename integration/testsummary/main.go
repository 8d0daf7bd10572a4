// Command testsummary prints the skipped tests of a CI run, with their reasons, and the number of tests with each
// result. It fails if a required test did not run.
package main

import (
	"fmt"
	"os"
	"strings"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: testsummary SKIPS UNIT.json VULN.json KERNEL.json...")
		os.Exit(2)
	}
	ok, err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsummary:", err)
	}
	if !ok {
		os.Exit(1)
	}
}

// run reads the list of the tests that may be skipped, and the reports of `go test -json` and of
// integration/vuln.sh.
func run(skips, unit, vuln string, kernel []string) (ok bool, err error) {
	allowed, err := os.ReadFile(skips)
	if err != nil {
		return false, err
	}
	unitEvents, err := read([]string{unit})
	if err != nil {
		return false, err
	}
	kernelEvents, err := read(kernel)
	if err != nil {
		return false, err
	}
	vulnEvents, err := read([]string{vuln})
	if err != nil {
		return false, err
	}
	lines, ok := summarize(unitEvents, vulnEvents, kernelEvents, strings.Split(string(allowed), "\n"))
	for _, line := range lines {
		fmt.Println(line)
	}
	return ok, nil
}
