package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestMain builds the agent of the tests' guests from this source tree.
func TestMain(m *testing.M) {
	status, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

func run(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "vmrun")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "vmrun")
	build := exec.Command("go", "build", "-o", path, "./vmrun")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build vmrun: %w: %s", err, out)
	}
	if err := os.Setenv("THINSNAP_VMRUN", path); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// requireGuests skips the test if no guest can boot because integration/setup.sh has not been run.
func requireGuests(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots guests: -short")
	}
	dmtest.RequireInstalled(t, Installed())
}
