package dmtest

import (
	"os"
	"testing"
)

// RequireInstalled skips the test if err is not nil: a program or a file is missing on the machine.
// If [Variable] is set, as under make, which installs them, it fails the test instead.
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
