package daemon

import (
	"fmt"

	"github.com/containerd/containerd/v2/pkg/kernelversion"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// oldestKernel returns the oldest version of Linux that thinsnap runs on: the first that tells a
// read-only table from BLKROSET (GD_READ_ONLY in include/linux/blkdev.h). On older ones the end of the
// latter makes a device with such a table writable, and an interrupted unpack passes for a whole one.
func oldestKernel() kernelversion.KernelVersion {
	return kernelversion.KernelVersion{Kernel: 5, Major: 12}
}

// requireKernel fails if the machine's kernel is older than a version.
func requireKernel(oldest kernelversion.KernelVersion) error {
	isNew, err := kernelversion.GreaterEqualThan(oldest)
	if err != nil {
		return fmt.Errorf("find out the kernel's version: %w", err)
	}
	if isNew {
		return nil
	}
	var system unix.Utsname
	if err := unix.Uname(&system); err != nil {
		return fmt.Errorf("find out the kernel's version: %w", err)
	}
	return fmt.Errorf("the kernel is Linux %s, but thinsnap needs %s or newer: install a newer kernel: %w",
		unix.ByteSliceToString(system.Release[:]), oldest.String(), errdefs.ErrFailedPrecondition)
}
