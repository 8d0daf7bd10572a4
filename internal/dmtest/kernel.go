package dmtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// Variable says whether tests with a real kernel run. With "1" they fail without a usable kernel,
// so that a broken set-up cannot pass for a success. With "0" they are skipped. Unset, they run if
// the kernel is usable.
const Variable = "THINSNAP_KERNEL_TESTS"

// ThoroughVariable is set where tests have more time than in `make test`.
const ThoroughVariable = "THINSNAP_THOROUGH"

// Thorough reports whether [ThoroughVariable] is set.
func Thorough() bool { return os.Getenv(ThoroughVariable) != "" }

// RequireThorough skips a test that only `make test-all` runs, unless [Thorough].
func RequireThorough(t testing.TB) {
	t.Helper()
	if !Thorough() {
		t.Skipf("only in make test-all: %s is not set", ThoroughVariable)
	}
}

// Filesystems returns the file systems for a long test in which thinsnap does the same with each:
// ext4, and xfs too if [Thorough].
func Filesystems() []string {
	if Thorough() {
		return []string{"ext4", "xfs"}
	}
	return []string{"ext4"}
}

// RequireKernel skips the test, or fails it as [Variable] says, unless it runs as root on a kernel
// with dm-thin.
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

// KernelUsable returns an error that names the requirement of kernel tests that this machine lacks:
// root, dm-thin or device-mapper's control device. It loads the module of dm-thin if it can.
func KernelUsable() error {
	if os.Geteuid() != 0 {
		return errors.New("not root")
	}
	const module = "/sys/module/dm_thin_pool"
	if _, err := os.Stat(module); err != nil {
		// The second look decides.
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
