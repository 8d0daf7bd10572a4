package dmtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// Variable decides whether tests with a real kernel run. With "1" they fail without a usable
// kernel, so that a broken set-up does not pass. With "0" they are skipped. If it is unset, they
// run if the kernel is usable.
const Variable = "THINSNAP_KERNEL_TESTS"

// ThoroughVariable is set if tests may take longer than in `make test`.
const ThoroughVariable = "THINSNAP_THOROUGH"

// Thorough returns true if [ThoroughVariable] is set.
func Thorough() bool { return os.Getenv(ThoroughVariable) != "" }

// RequireThorough skips a test that only `make test-all` runs, unless [Thorough].
func RequireThorough(t testing.TB) {
	t.Helper()
	if !Thorough() {
		t.Skipf("only in make test-all: %s is not set", ThoroughVariable)
	}
}

// Filesystems returns the file systems for a long test in which the type makes little difference:
// ext4, and also xfs if [Thorough].
func Filesystems() []string {
	if Thorough() {
		return []string{"ext4", "xfs"}
	}
	return []string{"ext4"}
}

// RequireKernel skips or fails the test, depending on [Variable], unless it runs as root on a
// kernel with dm-thin.
func RequireKernel(t testing.TB) {
	t.Helper()
	switch value := os.Getenv(Variable); value {
	case "0":
		t.Skipf("needs a kernel with dm-thin and root: %s=0", Variable)
	case "":
		if err := KernelUsable(); err != nil {
			t.Skipf("needs a kernel with dm-thin and root: %v", err)
		}
	case "1":
		if err := KernelUsable(); err != nil {
			t.Fatalf("%s=1 promises a kernel with dm-thin and root: %v", Variable, err)
		}
	default:
		t.Fatalf("%s is %q: it may be 0, 1 or unset", Variable, value)
	}
}

// KernelUsable returns an error if this machine cannot run tests with a real kernel: it lacks root,
// dm-thin or device-mapper's control device. It loads dm-thin's module if possible.
func KernelUsable() error {
	if os.Geteuid() != 0 {
		return errors.New("not root")
	}
	const module = "/sys/module/dm_thin_pool"
	if _, err := os.Stat(module); err != nil {
		// The second Stat decides.
		_ = exec.Command("modprobe", "-q", "dm-thin-pool").Run()
		if _, err := os.Stat(module); err != nil {
			return errors.New("the kernel has no dm-thin")
		}
	}
	f, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("device-mapper is out of reach: %w", err)
	}
	return f.Close()
}
