package harnesstest

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/integration/harness"
)

// Cell makes the test a cell of the table in docs/support.md. The version is the program's output with --version. Each
// subtest is a tested feature of the client.
func Cell(t *testing.T, client, program string) {
	t.Helper()
	printed, err := harness.Run(os.Environ(), program, "--version")
	require.NoError(t, err)
	version := regexp.MustCompile(`\d+(\.\d+)+`).FindString(printed)
	require.NotEmpty(t, version, printed)
	var uts unix.Utsname
	require.NoError(t, unix.Uname(&uts))
	kernel := unix.ByteSliceToString(uts.Release[:])
	processor, err := os.ReadFile("/proc/cpuinfo")
	require.NoError(t, err)
	if strings.Contains(string(processor), "User Mode Linux") {
		kernel += harness.UserMode
	}
	t.Attr(harness.CellAttribute, strings.Join([]string{client, version, kernel}, "\t"))
}
