package faulty

import (
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// Mount creates an ext4 on the device, and mounts it until the end of the test. With a journal,
// some errors end all writes to it, like on a machine's disk. Without one, it works again when the
// device does.
func (d *Device) Mount(t testing.TB, journal bool) (dir string) {
	t.Helper()
	args := []string{"-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,nodiscard"}
	if !journal {
		args = append(args, "-O", "^has_journal")
	}
	if out, err := exec.Command("mkfs.ext4", append(args, d.Path())...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	return d.mountNew(t, "ext4")
}

// MountXFS creates an XFS on the device, and mounts it until the end of the test.
func (d *Device) MountXFS(t testing.TB) (dir string) {
	t.Helper()
	if out, err := exec.Command("mkfs.xfs", "-q", "-K", d.Path()).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.xfs: %v: %s", err, out)
	}
	return d.mountNew(t, "xfs")
}

func (d *Device) mountNew(t testing.TB, filesystem string) (dir string) {
	t.Helper()
	d.filesystem = filesystem
	dir = t.TempDir()
	d.mount(t, dir)
	t.Cleanup(func() {
		d.Heal(t)
		if err := unmount(dir); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

func (d *Device) mount(t testing.TB, dir string) {
	t.Helper()
	if err := unix.Mount(d.Path(), dir, d.filesystem, unix.MS_NOATIME, ""); err != nil {
		t.Fatalf("mount: %v", err)
	}
}

func unmount(dir string) error {
	return whenFree(func() error { return unix.Unmount(dir, 0) })
}

// Remount unmounts the device and mounts it again. After errors, only that makes a file system read
// from the disk.
func (d *Device) Remount(t testing.TB, dir string) {
	t.Helper()
	if err := unmount(dir); err != nil {
		t.Fatalf("unmount: %v", err)
	}
	d.mount(t, dir)
}
