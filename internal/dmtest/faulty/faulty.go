// Package faulty makes block devices with faults that a test can switch on and off. A test calls
// dmtest.RequireKernel and dmtest.NoLeaks first.
package faulty

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
)

// Device is a block device on a sparse file.
type Device struct {
	control *devmapper.Control
	name    string
	below   string // the loop device, as "MAJOR:MINOR"
	sectors uint64
	// filesystem is the type of the mounted file system.
	filesystem string
}

// New creates a working device of the given size in bytes. The end of the test removes it in any
// state.
func New(t testing.TB, bytes int64) *Device {
	t.Helper()
	d, err := open(filepath.Join(t.TempDir(), "faulty"), bytes)
	if err != nil {
		t.Fatalf("make a faulty device: %v", err)
	}
	t.Cleanup(func() {
		d.Heal(t)
		if err := errors.Join(d.remove(), d.control.Close()); err != nil {
			t.Errorf("remove a faulty device: %v", err)
		}
	})
	return d
}

func open(file string, bytes int64) (*Device, error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(bytes), f.Close()); err != nil {
		return nil, err
	}
	loop, err := blockdev.LoopAttach(file, blockdev.LoopOptions{})
	if err != nil {
		return nil, err
	}
	defer loop.Close()
	control, err := devmapper.Open()
	if err != nil {
		return nil, err
	}
	d := &Device{
		control: control,
		name:    fmt.Sprintf("faulty-%d-%08x", os.Getpid(), rand.Uint32()),
		below:   loop.Number(),
		sectors: uint64(bytes) / devmapper.SectorBytes,
	}
	if _, err := control.Activate(d.name, "", []devmapper.Target{d.linear()}, false); err != nil {
		return nil, errors.Join(err, control.Close())
	}
	return d, nil
}

// Path returns the device's node.
func (d *Device) Path() string { return devmapper.NodePath(d.name) }

func (d *Device) linear() devmapper.Target {
	return devmapper.Target{Length: d.sectors, Type: "linear", Params: d.below + " 0"}
}

// Heal makes the device work, like at first. Hanging requests continue.
func (d *Device) Heal(t testing.TB) {
	t.Helper()
	d.become(t, d.linear())
}

// Fail makes every read and write fail with EIO.
func (d *Device) Fail(t testing.TB) {
	t.Helper()
	// dm-flakey: 0 seconds up, 1,000,000 seconds down.
	d.become(t, devmapper.Target{Length: d.sectors, Type: "flakey", Params: d.below + " 0 0 1000000"})
}

// FailWrites makes every write fail with EIO. Reads work.
func (d *Device) FailWrites(t testing.TB) {
	t.Helper()
	d.become(t, devmapper.Target{Length: d.sectors, Type: "flakey", Params: d.below + " 0 0 1000000 1 error_writes"})
}

// Hang makes every read and write wait until Heal.
func (d *Device) Hang(t testing.TB) {
	t.Helper()
	if _, err := d.control.Suspend(d.name, devmapper.SuspendOptions{NoFlush: true, SkipLockFS: true}); err != nil {
		t.Fatalf("suspend a faulty device: %v", err)
	}
}

func (d *Device) become(t testing.TB, target devmapper.Target) {
	t.Helper()
	_, err := d.control.Load(d.name, []devmapper.Target{target}, false)
	if err == nil {
		_, err = d.control.Suspend(d.name, devmapper.SuspendOptions{NoFlush: true, SkipLockFS: true})
	}
	if err == nil {
		_, err = d.control.Resume(d.name)
	}
	if err != nil {
		t.Fatalf("exchange a faulty device's table: %v", err)
	}
}

func (d *Device) remove() error {
	return whenFree(func() error { return d.control.Deactivate(d.name) })
}

// whenFree repeats f while it fails with EBUSY: udevd may open a device for a moment, and an open
// loop device keeps its file open.
func whenFree(f func() error) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}
