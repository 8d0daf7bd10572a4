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

// A running program is a process of this machine.
type running struct {
	pid            int
	args           []string
	exe, cwd, unit string
}

// processes returns the containerds that run as root with this machine's root directory.
func (h host) processes() ([]Containerd, error) {
	all, err := h.programs(programName)
	if err != nil {
		return nil, err
	}
	var found []Containerd
	for _, p := range all {
		if hasCommand(p.args) {
			continue
		}
		c := Containerd{PID: p.pid, Source: fmt.Sprintf("process %d", p.pid), Unit: p.unit, Executable: p.exe}
		c.parse(p.args, p.cwd)
		c.Kind = kindOf(c)
		found = append(found, c)
	}
	return found, nil
}

// hasCommand reports whether the arguments have a command of containerd, such as "config dump" or
// "publish": such a process is not a daemon.
func hasCommand(args []string) bool {
	for i := 1; i < len(args); i++ {
		name, _, joined := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		if !strings.HasPrefix(args[i], "-") {
			return true
		}
		takesValue := []string{"config", "c", "log-level", "l", "address", "a", "root", "state"}
		if !joined && slices.Contains(takesValue, name) {
			i++
		}
	}
	return false
}

// programs returns the processes of a program that run as root with this machine's root directory.
// Programs of other users are ignored, because the set-up executes the program to read its version.
func (h host) programs(name string) ([]running, error) {
	entries, err := os.ReadDir(h.path("/proc"))
	if err != nil {
		return nil, fmt.Errorf("look for %s among the processes: %w", name, err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	var found []running
	for _, pid := range pids {
		p, isOne, err := h.process(pid, name)
		if err != nil {
			return nil, err
		}
		if isOne {
			found = append(found, p)
		}
	}
	return found, nil
}

// process reads one process. It returns false if the process runs another program, as another user
// or in another root directory, or has ended.
func (h host) process(pid int, name string) (running, bool, error) {
	dir := h.path(filepath.Join("/proc", strconv.Itoa(pid)))
	line, _ := os.ReadFile(filepath.Join(dir, "cmdline")) // unreadable if the process has ended
	args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	if filepath.Base(args[0]) != name || !runsAsRoot(dir) {
		return running{}, false, nil
	}
	exe, err := os.Readlink(filepath.Join(dir, "exe"))
	cwd, cwdErr := os.Readlink(filepath.Join(dir, "cwd"))
	if err = errors.Join(err, cwdErr); errors.Is(err, fs.ErrPermission) {
		return running{}, false, fmt.Errorf("look at the process of %s: %w: run it as root", name, err)
	}
	if exe == "" || cwd == "" || !h.isHere(dir) {
		return running{}, false, nil
	}
	// After an upgrade, the process still has the old program, and its next start uses the new one.
	return running{pid, args, strings.TrimSuffix(exe, " (deleted)"), cwd, unitOf(dir)}, true, nil
}

// kindOf distinguishes the containerds of k3s and dockerd by the directories of their
// configurations (moby: daemon/internal/libcontainerd/supervisor, configFile; k3s:
// pkg/agent/config, getConfig).
func kindOf(c Containerd) Kind {
	switch {
	case strings.HasSuffix(c.Config, "docker/containerd/containerd.toml"):
		return Docker
	case strings.HasSuffix(c.Config, "/agent/etc/containerd/config.toml"):
		return K3s
	}
	return System
}

// runsAsRoot reports whether all user ids of a process are root's.
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

// isHere reports whether a process has this machine's root directory, and so is not in a container.
func (h host) isHere(dir string) bool {
	theirs, err := os.Stat(filepath.Join(dir, "root"))
	if err != nil {
		return false
	}
	ours, err := os.Stat(h.root)
	return err == nil && os.SameFile(theirs, ours)
}

// unitOf returns the systemd unit of a process's control group, or "".
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
