package vm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Config describes a guest. The zero value is usable.
type Config struct {
	// Root is the disk image of a Debian system (see integration/systemd/root.sh). The guest then boots that system
	// with its own init and udev, and keeps its writes; the host's files are at /run/host, read-only. Shares and Udev
	// are for guests without a Root.
	Root   string
	Disks  []Disk
	Shares []string // host directories that are writable in the guest, at the same paths
	Udev   bool     // run systemd-udevd in the guest
	Kernel string   // Debian suite of the kernel; default: $THINSNAP_KERNEL, else the machine's own release

	MemoryMiB int // default: 4096, at most half of the host's memory
	CPUs      int // default: 2; a user-mode guest has one
	// Accel is "kvm", "tcg", "uml" for a user-mode kernel, or "" for KVM if a guest boots on it, else TCG.
	Accel string
	// BootLimit bounds the time until the guest's agent answers. The default is 3 minutes, or 9 with a Root. An emulated
	// guest that exceeds a third of it, or fails with ErrStaleCode, is booted once more, with the whole limit.
	BootLimit time.Duration

	// KernelOptions are added to the kernel's command line, separated by spaces.
	KernelOptions string

	Cache   string    // default: CacheDir()
	Agent   string    // path of vmrun on the host; default: FindAgent()
	Console io.Writer // gets a copy of the console; may be nil
}

// Disk is a raw image file that the guest has as a virtio disk. The guest's flushes reach the host's file system, so
// data that the guest has fsynced survive any end of the guest.
type Disk struct {
	Path string
	Size int64 // bytes; a missing file is made, sparse; an existing one must not be shorter. 0: it must exist
}

// prepare makes the disk's file if it is missing.
func (d Disk) prepare() error {
	flags := os.O_RDWR
	if d.Size > 0 {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(d.Path, flags, 0o600)
	if err != nil {
		return fmt.Errorf("open a disk image: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("read the size of a disk image: %w", err)
	}
	switch {
	case info.Size() >= d.Size:
		return nil
	case info.Size() > 0:
		return fmt.Errorf("disk image %s has %d bytes, not %d", d.Path, info.Size(), d.Size)
	}
	if err := f.Truncate(d.Size); err != nil {
		return fmt.Errorf("make a disk image: %w", err)
	}
	return nil
}

// complete returns c with defaults, absolute paths, and its disks made.
func (c Config) complete() (Config, error) {
	var err error
	if c.Cache == "" {
		if c.Cache, err = CacheDir(); err != nil {
			return c, err
		}
	}
	if c.Agent == "" {
		if c.Agent, err = FindAgent(); err != nil {
			return c, err
		}
	}
	if c.Kernel == "" {
		c.Kernel = kernelSuite()
	}
	if c.CPUs == 0 {
		c.CPUs = 2
		if c.Accel == userMode {
			c.CPUs = 1
		}
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = defaultMemory()
	}
	if c.BootLimit == 0 {
		c.BootLimit = 3 * time.Minute
		if c.Root != "" {
			c.BootLimit = 9 * time.Minute
		}
	}
	c.Shares = append([]string(nil), c.Shares...)
	for i, s := range c.Shares {
		if c.Shares[i], err = filepath.Abs(s); err != nil {
			return c, err
		}
	}
	if c.Agent, err = filepath.Abs(c.Agent); err != nil {
		return c, err
	}
	if strings.ContainsAny(c.Agent, " \t\n") {
		return c, fmt.Errorf("the agent's path %q has white space, which the kernel's command line cannot carry", c.Agent)
	}
	for _, d := range c.Disks {
		if err := d.prepare(); err != nil {
			return c, err
		}
	}
	return c, nil
}

// FindAgent returns the path of vmrun: $THINSNAP_VMRUN, else the program that integration/setup.sh builds into the
// cache's bin directory.
func FindAgent() (string, error) {
	if path := os.Getenv("THINSNAP_VMRUN"); path != "" {
		return path, nil
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(cache, "bin", "vmrun")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s is missing: run integration/setup.sh first", path)
	}
	return path, nil
}
