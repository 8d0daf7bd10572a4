package devmapper

import "os"

// UdevRuns reports whether a udev daemon runs: its control socket exists.
func UdevRuns() bool {
	_, err := os.Stat("/run/udev/control")
	return err == nil
}
