// Package kernel checks whether thinsnap supports a kernel.
package kernel

import (
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The oldest supported Linux: the first that distinguishes a read-only table from BLKROSET (GD_READ_ONLY in
// include/linux/blkdev.h). On older ones the end of BLKROSET makes a device with a read-only table writable, and an
// interrupted unpack seems complete.
const oldestMajor, oldestMinor = 5, 12

// Release returns the running kernel's release, such as "6.1.0-50-amd64".
func Release() (string, error) {
	var system unix.Utsname
	if err := unix.Uname(&system); err != nil {
		return "", fmt.Errorf("find out the kernel's version: %w", err)
	}
	return unix.ByteSliceToString(system.Release[:]), nil
}

// Require fails with errdefs.ErrFailedPrecondition if the running kernel is too old.
func Require() error {
	release, err := Release()
	if err != nil {
		return err
	}
	return Check(release)
}

// Check fails with errdefs.ErrFailedPrecondition if the kernel of a release is too old, or the release has no version.
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
