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

// goneTime limits the wait after a test. The kernel removes a device at its last close, and
// detaches a loop device with autoclear, a little later than requested.
const goneTime = 5 * time.Second

// NoLeaks fails the test if it leaves device-mapper devices, attached loop devices, mounts or open
// files of this process. It compares the whole machine with its state at the call. Call it first,
// so that it checks after all other clean-ups. The test must not run in parallel to tests that
// create such things, but its subtests may be parallel.
func NoLeaks(t testing.TB) {
	t.Helper()
	noLeaks(t, goneTime)
}

func noLeaks(t testing.TB, wait time.Duration) {
	t.Helper()
	before, err := takeInventory()
	if err != nil {
		t.Fatalf("list devices, mounts and files before the test: %v", err)
	}
	t.Cleanup(func() {
		t.Helper()
		for deadline := time.Now().Add(wait); ; time.Sleep(50 * time.Millisecond) {
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

// inventory counts things by their description.
type inventory map[string]int

// minus returns descriptions of the things that inv has more of, sorted.
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

// addAttributes adds an entry for each file that matches the pattern: the block device, two levels
// up, and the file's content.
func addAttributes(inv inventory, kind, pattern string) error {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) ||
			errors.Is(err, unix.EINVAL) {
			continue // it has disappeared
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
			continue // the descriptor of dir itself
		}
		if err != nil {
			return err
		}
		// The Go runtime opens these when it first uses its poller, and keeps them.
		if target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" {
			continue
		}
		inv["open file "+target]++
	}
	return nil
}
