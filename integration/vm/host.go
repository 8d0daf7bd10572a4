package vm

import (
	"fmt"
	"os"
	"runtime"
)

// wantedMemory is a guest's memory in MiB, if the host has enough.
const wantedMemory = 4096

func defaultMemory() int {
	if host := hostMemory(); host > 0 {
		return min(wantedMemory, host/2)
	}
	return wantedMemory
}

// GuestsAtATime returns how many guests with this number of processors run side by side on the host, at least one. A
// guest counts with one and a half times its memory, because QEMU and the disk images use the host's memory too.
func GuestsAtATime(cpus int) int {
	return max(1, min(runtime.NumCPU()/max(1, cpus), hostMemory()/(wantedMemory+wantedMemory/2)))
}

// hostMemory returns the host's memory in MiB, 0 if it is unknown.
func hostMemory() int {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	var kib int
	if _, err := fmt.Sscanf(string(b), "MemTotal: %d kB", &kib); err != nil {
		return 0
	}
	return kib / 1024
}
