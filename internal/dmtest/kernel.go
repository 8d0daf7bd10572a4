package dmtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// Variable tells the tests what to do about the kernel. With "1" its absence is a failure: whoever sets it promises that
// the kernel is there, so that a broken set-up cannot pass for a success. With "0" tests that need it are skipped even
// where it is. Unset, they run where they can.
const Variable = "THINSNAP_KERNEL_TESTS"

// RequireKernel skips the test, or fails it as [Variable] says, unless it runs as root on a kernel with dm-thin.
func RequireKernel(t testing.TB) {
	t.Helper()
	switch value := os.Getenv(Variable); value {
	case "0":
		t.Skipf("needs a kernel with dm-thin and root: %s=0", Variable)
	case "":
		if err := kernelUsable(); err != nil {
			t.Skipf("needs a kernel with dm-thin and root: %v", err)
		}
	case "1":
		if err := kernelUsable(); err != nil {
			t.Fatalf("%s=1 promises a kernel with dm-thin and root: %v", Variable, err)
		}
	default:
		t.Fatalf("%s is %q: it may be 0, 1 or unset", Variable, value)
	}
}

// kernelUsable says what is missing.
func kernelUsable() error {
	if os.Geteuid() != 0 {
		return errors.New("not root")
	}
	const module = "/sys/module/dm_thin_pool"
	if _, err := os.Stat(module); err != nil {
		// What it prints is of no use: the second look is what counts.
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
