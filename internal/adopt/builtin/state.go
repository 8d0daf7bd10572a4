package builtin

import "fmt"

// A State is the last operation on a device that the snapshotter began or completed. A name in -ing
// is that of an operation that began and then failed, if Device.Error is set, or was ended by a
// crash. Such a state does not show what the kernel did.
type State uint8

// The states of devices (device_info.go: DeviceState). When containerd starts, it changes Unknown,
// Creating, Created, Activating, Suspending, Resuming, Deactivating and Removing to StateFaulty,
// whether or not a snapshot uses the volume. It activates the devices in StateActivated
// (pool_device.go: ensureDeviceStates).
const (
	StateUnknown      State = iota // recorded; no volume yet (AddDevice)
	StateCreating                  // the volume may exist
	StateCreated                   // the volume exists
	StateActivating                // the volume exists, and is being activated
	StateActivated                 // active until the host restarts: an active snapshot or a View
	StateSuspending                // for a child, or for a commit
	StateSuspended                 // I/O waits
	StateResuming                  // after the copy for a child, or during a commit
	StateResumed                   // active, but not activated again when containerd starts
	StateDeactivating              // at the end of a commit, or before a removal
	StateDeactivated               // the volume exists, and is inactive after its last close: a committed snapshot
	StateRemoving                  // the volume may exist
	// StateRemoved is the state after the volume was deleted and before its record is deleted
	// (pool_device.go: RemoveDevice). With async_remove it is also the state of a volume that
	// exists until the next collection (snapshotter.go: removeDevice, Cleanup).
	StateRemoved
	// StateFaulty is the state after a failed or interrupted operation. The volume may exist and be
	// intact.
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
