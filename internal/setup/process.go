package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// processes returns the containerds that run as root with this machine's root directory. Another user's
// program is not one, whatever its name: it would be executed to find its version.
func (h host) processes() ([]Containerd, error) {
	entries, err := os.ReadDir(h.path("/proc"))
	if err != nil {
		return nil, fmt.Errorf("look for containerd among the processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	var found []Containerd
	for _, pid := range pids {
		c, isOne, err := h.process(pid)
		if err != nil {
			return nil, err
		}
		if isOne {
			found = append(found, c)
		}
	}
	return found, nil
}

// process reads one process. It returns false for one that is no containerd, or has ended.
func (h host) process(pid int) (Containerd, bool, error) {
	dir := h.path(filepath.Join("/proc", strconv.Itoa(pid)))
	line, _ := os.ReadFile(filepath.Join(dir, "cmdline")) // of one that has ended, nothing can be read
	args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	if filepath.Base(args[0]) != programName || !runsAsRoot(dir) {
		return Containerd{}, false, nil
	}
	exe, err := os.Readlink(filepath.Join(dir, "exe"))
	cwd, cwdErr := os.Readlink(filepath.Join(dir, "cwd"))
	if err = errors.Join(err, cwdErr); errors.Is(err, fs.ErrPermission) {
		return Containerd{}, false, fmt.Errorf("look at containerd's process: %w: run it as root", err)
	}
	if exe == "" || cwd == "" {
		return Containerd{}, false, nil // it has ended
	}
	if !h.isHere(dir) {
		return Containerd{}, false, nil
	}
	c := Containerd{
		PID: pid, Source: fmt.Sprintf("process %d", pid), Unit: unitOf(dir),
		// After an upgrade the process has the old program, and the next start the new one.
		Executable: strings.TrimSuffix(exe, " (deleted)"),
	}
	c.parse(args, cwd)
	c.Kind = kindOf(c)
	return c, true, nil
}

// kindOf tells the containerds of k3s and dockerd by the directories of their configurations (moby:
// daemon/internal/libcontainerd/supervisor, configFile; k3s: pkg/agent/config, getConfig).
func kindOf(c Containerd) Kind {
	switch {
	case strings.HasSuffix(c.Config, "/docker/containerd/containerd.toml"):
		return Docker
	case strings.HasSuffix(c.Config, "/agent/etc/containerd/config.toml"):
		return K3s
	}
	return System
}

// runsAsRoot returns true if all user ids of a process are root's.
func runsAsRoot(dir string) bool {
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if ids, isUid := strings.CutPrefix(line, "Uid:"); isUid {
			return !slices.ContainsFunc(strings.Fields(ids), func(id string) bool { return id != "0" })
		}
	}
	return false
}

// isHere returns true if a process has this machine's root directory, and is not in a container.
func (h host) isHere(dir string) bool {
	theirs, err := os.Stat(filepath.Join(dir, "root"))
	if err != nil {
		return false
	}
	ours, err := os.Stat(h.root)
	return err == nil && os.SameFile(theirs, ours)
}

// unitOf returns the unit of systemd in whose control group a process is, or "".
func unitOf(dir string) string {
	groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(groups)) {
		for part := range strings.SplitSeq(strings.TrimSpace(line), "/") {
			if strings.HasSuffix(part, ".service") {
				return part
			}
		}
	}
	return ""
}
