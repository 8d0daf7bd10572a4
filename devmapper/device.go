package devmapper

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// SectorBytes is the unit of tables.
const SectorBytes = 512

// Target is one line of a table, or of a status.
type Target struct {
	Start  uint64 // first sector of the device that it maps; sectors are 512 bytes
	Length uint64 // sectors
	Type   string // target type, at most 15 bytes: "linear", "thin", "thin-pool", ...
	Params string // parameters of a table, or the status line
}

// Device is the state of a device. [Control.List] sets only the name, the number, EventNr and UUID.
type Device struct {
	Name           string
	UUID           string // "" if it has none
	Major, Minor   uint32
	OpenCount      int    // open descriptors, mounts and other devices on top
	TargetCount    int    // targets in the live table
	EventNr        uint32 // events raised so far, modulo 2^32
	Suspended      bool   // I/O is held back
	ReadOnly       bool   // of the live table
	Live           bool   // has a live table
	Inactive       bool   // has a loaded table that is not live yet
	DeferredRemove bool   // is removed at the last close
}

// uuidPrefix marks a uuid in place of a name. No name can begin with it, because the kernel accepts
// no slash in names.
const uuidPrefix = "uuid/"

// ByUUID returns a name for the device with the given uuid. For an existing device, all methods but
// [Control.Deactivate] accept it. A device's own name can change, and then belong to another.
func ByUUID(uuid string) string { return uuidPrefix + uuid }

// Number returns the device number as "MAJOR:MINOR", as the tables of other
// devices name it.
func (d Device) Number() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// SuspendOptions configures how I/O is stopped. The zero value is safe: it
// freezes the file system on the device and completes the I/O in flight.
type SuspendOptions struct {
	NoFlush    bool // queue the I/O in flight instead of waiting for it
	SkipLockFS bool // do not freeze the file system on the device
}

func (o SuspendOptions) flags() (flags uint32) {
	if o.NoFlush {
		flags |= unix.DM_NOFLUSH_FLAG
	}
	if o.SkipLockFS {
		flags |= unix.DM_SKIP_LOCKFS_FLAG
	}
	return flags
}

// RemoveOptions configures how a device is removed.
type RemoveOptions struct {
	Deferred bool // if it is open, remove it at the last close
}

// Flags for udev's rules, in the cookie of a uevent (libdevmapper.h: DM_UDEV_*). Rules process only
// events from the primary source. The other flags keep them from opening the device, and from
// managing its link: udev could remove the link of a device that is created again soon after its
// removal.
const (
	udevDisableDMRules        = 0x01
	udevDisableSubsystemRules = 0x02
	udevDisableDiskRules      = 0x04
	udevDisableOtherRules     = 0x08
	udevPrimarySource         = 0x40

	udevFlags = udevPrimarySource | udevDisableDMRules | udevDisableSubsystemRules |
		udevDisableDiskRules | udevDisableOtherRules
	// udevCookie is the event_nr of a request that raises a uevent: the flags in the upper half,
	// and a semaphore's number in the lower. 0 is no semaphore: the rules' `dmsetup udevcomplete`
	// then succeeds at once.
	udevCookie = udevFlags << 16
)

// Create creates a device without a table, with the given name (1 to 127 bytes, no "/") and uuid
// (at most 128 bytes; "" for none). It returns [ErrTooLong] if one of them is too long, and
// [ErrExists] if another device has one of them.
func (c *Control) Create(name, uuid string) (Device, error) {
	if name == "" {
		return Device{}, newError(opCreate, uuid, unix.EINVAL)
	}
	return c.device(opCreate, header{name: name, uuid: uuid}, nil)
}

// Load puts a table into the inactive slot of a device, in place of any other. The next Resume
// makes it live. readOnly makes the device refuse writes. For a missing device in the table the
// error may match ENXIO, but not [ErrNotFound].
func (c *Control) Load(name string, targets []Target, readOnly bool) (Device, error) {
	payload, err := encodeTargets(targets)
	if err != nil {
		return Device{}, failure(opLoad, name, err)
	}
	h := header{name: name, targetCount: uint32(len(targets))}
	if readOnly {
		h.flags |= unix.DM_READONLY_FLAG
	}
	d, err := c.device(opLoad, h, payload)
	if failed := (*Error)(nil); errors.As(err, &failed) && errors.Is(err, ErrNotFound) {
		if _, infoErr := c.Info(name); infoErr == nil {
			failed.kind = nil
		}
	}
	return d, err
}

// Suspend completes the I/O in flight and holds back new I/O until Resume. It is repeated when a
// signal interrupts it. It does nothing to a suspended device.
func (c *Control) Suspend(name string, o SuspendOptions) (Device, error) {
	return c.device(opSuspend, header{name: name, flags: unix.DM_SUSPEND_FLAG | o.flags()}, nil)
}

// Resume makes the loaded table live, if there is one, and lets I/O through. A device that is not
// suspended is suspended while its table is replaced.
func (c *Control) Resume(name string) (Device, error) {
	return c.Exchange(name, SuspendOptions{})
}

// Exchange is Resume with options for the suspension. The kernel suspends, replaces the table and
// resumes in one call (do_resume of drivers/md/dm-ioctl.c), so a kill does not leave the device
// suspended. If the kernel rejects the new table, the device stays suspended.
func (c *Control) Exchange(name string, o SuspendOptions) (Device, error) {
	return c.device(opResume, header{name: name, flags: o.flags(), eventNr: udevCookie}, nil)
}

// Remove removes a device, but not its node under /dev/mapper ([RemoveNode]). It returns [ErrBusy]
// if the device is open. With o.Deferred an open device is removed at the last close instead, and
// deferred is true.
func (c *Control) Remove(name string, o RemoveOptions) (deferred bool, err error) {
	h := header{name: name, eventNr: udevCookie}
	if o.Deferred {
		h.flags |= unix.DM_DEFERRED_REMOVE
	}
	d, err := c.device(opRemove, h, nil)
	return d.DeferredRemove, err
}

// Message sends a message to the target that maps a sector of a device (0 for devices with one
// target). It returns the answer, which is "" for most messages. It returns EMSGSIZE if the answer
// exceeds some 700 bytes, because a message is never sent twice.
func (c *Control) Message(name string, sector uint64, msg string) (string, error) {
	if hasNUL(msg) {
		return "", newError(opMessage, name, unix.EINVAL)
	}
	r, err := c.call(opMessage, header{name: name}, encodeMessage(sector, msg), smallBuffer)
	if err != nil || r.header.Flags&unix.DM_DATA_OUT_FLAG == 0 {
		return "", err
	}
	answer, err := cstring(r.payload)
	return answer, failure(opMessage, name, err)
}

// device issues a request whose answer is only the state of the device.
func (c *Control) device(o op, h header, payload []byte) (Device, error) {
	r, err := c.call(o, h, payload, headerSize)
	if err != nil {
		return Device{}, err
	}
	return deviceOf(&r.header), nil
}

func deviceOf(h *unix.DmIoctl) Device {
	return Device{
		Name:           unix.ByteSliceToString(h.Name[:]),
		UUID:           unix.ByteSliceToString(h.Uuid[:]),
		Major:          unix.Major(h.Dev),
		Minor:          unix.Minor(h.Dev),
		OpenCount:      int(h.Open_count),
		TargetCount:    int(h.Target_count),
		EventNr:        h.Event_nr,
		Suspended:      h.Flags&unix.DM_SUSPEND_FLAG != 0,
		ReadOnly:       h.Flags&unix.DM_READONLY_FLAG != 0,
		Live:           h.Flags&unix.DM_ACTIVE_PRESENT_FLAG != 0,
		Inactive:       h.Flags&unix.DM_INACTIVE_PRESENT_FLAG != 0,
		DeferredRemove: h.Flags&unix.DM_DEFERRED_REMOVE != 0,
	}
}
