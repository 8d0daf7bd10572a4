package dmtest

import (
	"os"
	"testing"
)

// RequireInstalled skips a test that lacks a program or a file of the machine's, as err says. Where
// make runs the tests, which sets [Variable], it has installed what they need: then it fails. A nil
// error is none.
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
