package dmtest

import (
	"os"
	"testing"
)

// RequireInstalled skips a test that lacks a program or a file of the machine, as err says. Under
// make, which sets [Variable] and installs all requirements, the test fails instead. A nil error does
// nothing.
func RequireInstalled(t testing.TB, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if _, said := os.LookupEnv(Variable); said {
		t.Fatal(err)
	}
	t.Skip(err)
}
