package devmapper

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Version is a version of the ioctl interface or of a target type: major,
// minor and patch level.
type Version [3]uint32

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

// StatusOptions configures how a status is read.
type StatusOptions struct {
	// NoFlush reads the figures without a commit. Otherwise a thin-pool commits its metadata first.
	NoFlush bool
}

// Version returns the version of the kernel's ioctl interface.
func (c *Control) Version() (Version, error) {
	r, err := c.call(opVersion, header{}, nil, headerSize)
	return Version(r.header.Version), err
}

// TargetVersions returns the versions of the target types that the kernel has loaded,
// by name. A type in a module that is not loaded is missing.
func (c *Control) TargetVersions() (map[string]Version, error) {
	r, err := c.call(opVersions, header{}, nil, listBuffer)
	if err != nil {
		return nil, err
	}
	versions, err := decodeVersions(r.payload)
	return versions, failure(opVersions, "", err)
}

// List returns the name, number, event number and uuid of all devices. Kernels
// before 5.13 leave out the uuids.
func (c *Control) List() ([]Device, error) {
	r, err := c.call(opList, header{flags: unix.DM_UUID_FLAG}, nil, listBuffer)
	if err != nil {
		return nil, err
	}
	devices, err := decodeNames(r.payload)
	return devices, failure(opList, "", err)
}

// Info returns the state of a device.
func (c *Control) Info(name string) (Device, error) {
	return c.device(opInfo, header{name: name}, nil)
}

// InfoByUUID returns the state of the device with a uuid.
func (c *Control) InfoByUUID(uuid string) (Device, error) {
	return c.device(opInfo, header{uuid: uuid}, nil)
}

// Status returns the state of a device and the status lines of the targets of its live table, or
// none without a live table.
func (c *Control) Status(name string, o StatusOptions) (Device, []Target, error) {
	h := header{name: name}
	if o.NoFlush {
		h.flags |= unix.DM_NOFLUSH_FLAG
	}
	return c.targets(opStatus, h)
}

// Table returns the state of a device and its live table as the kernel renders it, or no targets
// without a live table.
func (c *Control) Table(name string) (Device, []Target, error) {
	return c.targets(opTable, header{name: name, flags: unix.DM_STATUS_TABLE_FLAG})
}

// Deps returns the numbers of the devices in the live table of a device, in the
// encoding of unix.Major and unix.Minor.
func (c *Control) Deps(name string) ([]uint64, error) {
	r, err := c.call(opDeps, header{name: name}, nil, smallBuffer)
	if err != nil {
		return nil, err
	}
	devs, err := decodeDeps(r.payload)
	return devs, failure(opDeps, name, err)
}

func (c *Control) targets(o op, h header) (Device, []Target, error) {
	r, err := c.call(o, h, nil, smallBuffer)
	if err != nil {
		return Device{}, nil, err
	}
	targets, err := decodeTargets(r.payload, r.header.Target_count)
	if err != nil {
		return Device{}, nil, failure(o, h.name, err)
	}
	return deviceOf(&r.header), targets, nil
}
