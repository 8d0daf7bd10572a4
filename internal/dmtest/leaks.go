package dmtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// settleTime is the longest wait for things to go away after a test: the kernel removes a device
// that was open, and a loop device that clears itself, a little later than it is asked to.
const settleTime = 5 * time.Second

// NoLeaks fails the test if, after its later-registered clean-ups, there are device-mapper devices,
// attached loop devices, mounts or open files of this process that did not exist when NoLeaks was
// called. Call it first, so that it checks last. It looks at the whole machine: a test that uses it
// must not run beside others that make such things, but its own subtests may be parallel.
func NoLeaks(t testing.TB) {
	t.Helper()
	noLeaks(t, settleTime)
}

func noLeaks(t testing.TB, settle time.Duration) {
	t.Helper()
	before, err := takeInventory()
	if err != nil {
		t.Fatalf("list devices, mounts and files before the test: %v", err)
	}
	t.Cleanup(func() {
		t.Helper()
		for deadline := time.Now().Add(settle); ; time.Sleep(50 * time.Millisecond) {
			after, err := takeInventory()
			if err != nil {
				t.Errorf("list devices, mounts and files after the test: %v", err)
				return
			}
			leaks := after.minus(before)
			if len(leaks) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("left behind after the test:\n  %s", strings.Join(leaks, "\n  "))
				return
			}
		}
	})
}

// inventory has the number of things with each description.
type inventory map[string]int

// minus describes the things that inv has more of, sorted.
func (inv inventory) minus(other inventory) []string {
	var more []string
	for what, n := range inv {
		if extra := n - other[what]; extra > 1 {
			more = append(more, fmt.Sprintf("%s (%d times)", what, extra))
		} else if extra == 1 {
			more = append(more, what)
		}
	}
	sort.Strings(more)
	return more
}

func takeInventory() (inventory, error) {
	inv := make(inventory)
	for _, add := range []func(inventory) error{addMappedDevices, addLoopDevices, addMounts, addFiles} {
		if err := add(inv); err != nil {
			return nil, err
		}
	}
	return inv, nil
}

func addMappedDevices(inv inventory) error {
	return addAttributes(inv, "device-mapper device", "/sys/block/dm-*/dm/name")
}

func addLoopDevices(inv inventory) error {
	return addAttributes(inv, "loop device", "/sys/block/loop*/loop/backing_file")
}

// addAttributes adds one entry for each file that matches the pattern: the block device, two levels
// up, and its content.
func addAttributes(inv inventory, kind, pattern string) error {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) ||
			errors.Is(err, unix.EINVAL) {
			continue // gone meanwhile
		}
		if err != nil {
			return err
		}
		device := filepath.Base(filepath.Dir(filepath.Dir(file)))
		inv[fmt.Sprintf("%s %s: %s", kind, device, strings.TrimSpace(string(content)))]++
	}
	return nil
}

func addMounts(inv inventory) error {
	mounts, err := mountinfo.GetMounts(nil)
	for _, m := range mounts {
		inv[fmt.Sprintf("mount of %s (%s) on %s", m.Source, m.FSType, m.Mountpoint)]++
	}
	return err
}

func addFiles(inv inventory) error {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		target, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // the one that listed the directory
		}
		if err != nil {
			return err
		}
		// The Go runtime opens these on first use of its poller and keeps them.
		if target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" {
			continue
		}
		inv["open file "+target]++
	}
	return nil
}
