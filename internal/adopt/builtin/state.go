package builtin

import "fmt"

// A State is the last operation that the snapshotter began on a device, or that succeeded. A name
// in -ing is that of an operation that began: it failed if Device.Error is set, else a crash ended
// it. Such a state says nothing of what the kernel did.
type State uint8

// The states of devices (device_info.go: DeviceState). A start of containerd turns Unknown,
// Creating, Created, Activating, Suspending, Resuming, Deactivating and Removing into StateFaulty,
// whether or not a snapshot uses the volume, and activates what is StateActivated (pool_device.go:
// ensureDeviceStates).
const (
	StateUnknown      State = iota // recorded; no volume yet (AddDevice)
	StateCreating                  // the volume may exist
	StateCreated                   // the volume exists
	StateActivating                // and is being mapped
	StateActivated                 // it is mapped until the host restarts: an active snapshot or a View
	StateSuspending                // for a child, or for a commit
	StateSuspended                 //
	StateResuming                  //
	StateResumed                   // mapped, as StateActivated, but not activated by a start
	StateDeactivating              //
	StateDeactivated               // the volume exists, and is not mapped once it is closed: a committed snapshot
	StateRemoving                  // the volume may exist
	// StateRemoved is the state after the volume was deleted, and before its record is
	// (pool_device.go: RemoveDevice). With async_remove it is also the state of a volume that
	// exists until the next collection (snapshotter.go: removeDevice, Cleanup).
	StateRemoved
	// StateFaulty says that an operation failed or was cut short. The volume may exist, and be
	// whole: see above.
	StateFaulty
)

func (s State) String() string {
	names := [...]string{
		"Unknown", "Creating", "Created", "Activating", "Activated", "Suspending", "Suspended", "Resuming", "Resumed",
		"Deactivating", "Deactivated", "Removing", "Removed", "Faulty",
	}
	if int(s) >= len(names) {
		return fmt.Sprintf("unknown %d", uint8(s))
	}
	return names[s]
}
