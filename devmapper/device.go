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

// Device is what the kernel tells about a device with every answer.
type Device struct {
	Name           string
	UUID           string // "" if it has none
	Major, Minor   uint32
	OpenCount      int    // open descriptors, mounts and other devices on top
	TargetCount    int    // targets in the live table
	EventNr        uint32 // events raised so far, modulo 2^32
	Suspended      bool   // I/O is held back
	ReadOnly       bool   // of the live table
	Live           bool   // a live table is there
	Inactive       bool   // a table is loaded that is not live yet
	DeferredRemove bool   // goes when it is closed for the last time
}

// uuidName begins what stands for a uuid in the place of a name: the kernel takes no
// name with a slash in it.
const uuidName = "uuid/"

// ByUUID returns what stands for the device with a uuid in the place of its name, in all
// calls about a device that exists. A name can change, and be another device's.
func ByUUID(uuid string) string { return uuidName + uuid }

// Number is the device number as "MAJOR:MINOR", the form in which the tables of
// other devices name it.
func (d Device) Number() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// SuspendOptions says how I/O is stopped. The zero value is the safe way: the
// file system on the device is frozen and I/O under way is completed.
type SuspendOptions struct {
	NoFlush    bool // keep I/O under way queued instead of waiting for it
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

// RemoveOptions says how a device is removed.
type RemoveOptions struct {
	Deferred bool // if it is open, let it go when it is closed for the last time
}

// The flags of an uevent's cookie for udev's rules (libdevmapper.h,
// DM_UDEV_*): the event is a change that matters (rules look at a device only
// then), and neither LVM's, nor the disk rules, nor any other are to open the
// device or to publish its contents. Nor are the links in /dev/mapper udev's: when a
// device comes soon after another of its name went, udev would take away the link of
// the new one until it has dealt with that, too.
const (
	udevDisableDMRules        = 0x01
	udevDisableSubsystemRules = 0x02
	udevDisableDiskRules      = 0x04
	udevDisableOtherRules     = 0x08
	udevPrimarySource         = 0x40

	udevFlags = udevPrimarySource | udevDisableDMRules | udevDisableSubsystemRules | udevDisableDiskRules | udevDisableOtherRules
	// udevCookie is the event_nr of a request that makes an uevent: flags
	// above, and below the number of a semaphore. 0 stands for none, and the
	// `dmsetup udevcomplete` of the rules then does nothing, successfully.
	udevCookie = udevFlags << 16
)

// Create makes a device that has no table yet, with the given name (1 to 127
// bytes, no "/") and uuid (at most 128 bytes; "" for none). Neither is shortened:
// [ErrTooLong]. [ErrExists] if another device has either.
func (c *Control) Create(name, uuid string) (Device, error) {
	if name == "" {
		return Device{}, newError(opCreate, uuid, unix.EINVAL)
	}
	return c.device(opCreate, header{name: name, uuid: uuid}, nil)
}

// Load puts a table in the inactive slot of a device, replacing one that is
// there; it becomes live at the next Resume. readOnly makes the device refuse
// writes. When the device exists, ENXIO is not [ErrNotFound] but means that a
// device named in the table does not exist.
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

// Suspend holds back I/O to a device until Resume, after that under way has
// ended. It is begun anew when a signal interrupts it. Suspending a suspended
// device does nothing.
func (c *Control) Suspend(name string, o SuspendOptions) (Device, error) {
	return c.device(opSuspend, header{name: name, flags: unix.DM_SUSPEND_FLAG | o.flags()}, nil)
}

// Resume makes the loaded table live, if there is one, and lets I/O through. A
// device that is not suspended is suspended for the exchange. The uevent tells
// udev to make its links and not to scan the device.
func (c *Control) Resume(name string) (Device, error) {
	return c.Exchange(name, SuspendOptions{})
}

// Exchange is Resume with a say in how the device is suspended if it is not. The
// kernel suspends, exchanges the tables and resumes in one call (do_resume of
// drivers/md/dm-ioctl.c), so that whoever is killed does not leave the device suspended. If
// the kernel does not take the new table after all, the device does stay suspended.
func (c *Control) Exchange(name string, o SuspendOptions) (Device, error) {
	return c.device(opResume, header{name: name, flags: o.flags(), eventNr: udevCookie}, nil)
}

// Remove removes a device; its node under /dev/mapper is left ([RemoveNode]).
// [ErrBusy] if it is open, unless o.Deferred is set: then deferred tells
// whether it is still there, to go when it is closed for the last time.
func (c *Control) Remove(name string, o RemoveOptions) (deferred bool, err error) {
	h := header{name: name, eventNr: udevCookie}
	if o.Deferred {
		h.flags |= unix.DM_DEFERRED_REMOVE
	}
	d, err := c.device(opRemove, h, nil)
	return d.DeferredRemove, err
}

// Message sends a message to the target that maps a sector of a device (0 for
// devices of one target) and gives its answer, "" for most. The answer may
// have up to 16 KiB; a message is never sent twice to get more (EMSGSIZE).
func (c *Control) Message(name string, sector uint64, msg string) (string, error) {
	if hasNUL(msg) {
		return "", newError(opMessage, name, unix.EINVAL)
	}
	r, err := c.call(opMessage, header{name: name}, encodeMessage(sector, msg), firstBuffer)
	if err != nil || r.header.Flags&unix.DM_DATA_OUT_FLAG == 0 {
		return "", err
	}
	answer, err := cstring(r.payload)
	return answer, failure(opMessage, name, err)
}

// device issues a request that is answered by the state of the device only.
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
