package plan

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/moby/sys/mountinfo"
)

// mountsOf returns the mount points of each block device, by "MAJOR:MINOR", in the mount namespaces
// of all processes in a proc file system.
func mountsOf(proc string) map[string][]string {
	all := make(map[string][]string)
	seen := make(map[string]bool)
	own, _ := os.Readlink(filepath.Join(proc, "self", "ns", "mnt"))
	processes := []string{"self"}
	entries, _ := os.ReadDir(proc)
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			processes = append(processes, e.Name())
		}
	}
	for _, process := range processes {
		space, err := os.Readlink(filepath.Join(proc, process, "ns", "mnt"))
		if err != nil || seen[space] {
			continue // the process has ended, or its mounts are known
		}
		file, err := os.Open(filepath.Join(proc, process, "mountinfo"))
		if err != nil {
			continue
		}
		mounts, err := mountinfo.GetMountsFromReader(file, nil)
		file.Close()
		if err != nil {
			continue
		}
		seen[space] = true
		for _, m := range mounts {
			number, where := fmt.Sprintf("%d:%d", m.Major, m.Minor), m.Mountpoint
			if space != own {
				where += " (seen by process " + process + ")"
			}
			if !slices.Contains(all[number], where) {
				all[number] = append(all[number], where)
			}
		}
	}
	return all
}
