// Package kernel says which kernels thinsnap runs on.
package kernel

import (
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The oldest version of Linux that thinsnap runs on: the first that tells a read-only table from BLKROSET
// (GD_READ_ONLY in include/linux/blkdev.h). On older ones the end of the latter makes a device with such a
// table writable, and an interrupted unpack passes for a whole one.
const oldestMajor, oldestMinor = 5, 12

// Release returns the running kernel's release, such as "6.1.0-50-amd64".
func Release() (string, error) {
	var system unix.Utsname
	if err := unix.Uname(&system); err != nil {
		return "", fmt.Errorf("find out the kernel's version: %w", err)
	}
	return unix.ByteSliceToString(system.Release[:]), nil
}

// Require fails if the running kernel is too old. The error is errdefs.ErrFailedPrecondition.
func Require() error {
	release, err := Release()
	if err != nil {
		return err
	}
	return Check(release)
}

// Check fails if the kernel of that release is too old, or if the release has no version. The error is
// errdefs.ErrFailedPrecondition.
func Check(release string) error {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("find out the kernel's version from its release %q: %w: %w", release, err,
			errdefs.ErrFailedPrecondition)
	}
	if major > oldestMajor || major == oldestMajor && minor >= oldestMinor {
		return nil
	}
	return fmt.Errorf("the kernel is Linux %s, but thinsnap needs %d.%d or newer: install a newer kernel: %w",
		release, oldestMajor, oldestMinor, errdefs.ErrFailedPrecondition)
}
