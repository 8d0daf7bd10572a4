// Package accounting measures the cost of processes and kernel threads: CPU time and context switches, as counted in
// /proc.
package accounting

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// sample is the cost of some processes and of all kernel threads up to one moment.
type sample struct {
	at        time.Time // when the processes were read
	processes map[string]process
	kernel    map[int]thread // by PID
	busy      time.Duration
}

// process is the cost of a process since its start.
type process struct {
	user, system time.Duration // of all its threads, ended ones too
	children     time.Duration // of executed programs that have ended
	threads      map[int]switches
}

// thread is the cost of a kernel thread since its start.
type thread struct {
	cpu time.Duration
	switches
}

type switches struct{ voluntary, involuntary int64 }

// Meter measures the usage since its start.
type Meter struct {
	pids  map[string]int
	begin sample
}

// Start starts a meter. pids maps the names in [Usage] to process ids. One of them may be the caller's: its
// usage does not include the meter's work, because processes are read last here, and first in [Meter.Read].
func Start(pids map[string]int) (*Meter, error) {
	m := &Meter{pids: pids}
	if err := m.begin.readMachine(); err != nil {
		return nil, err
	}
	return m, m.begin.readProcesses(pids)
}

// Read returns the usage since the start.
func (m *Meter) Read() (Usage, error) {
	var end sample
	if err := end.readProcesses(m.pids); err != nil {
		return Usage{}, err
	}
	if err := end.readMachine(); err != nil {
		return Usage{}, err
	}
	return end.since(m.begin), nil
}

func (s *sample) readProcesses(pids map[string]int) (err error) {
	s.at, s.processes = time.Now(), make(map[string]process)
	for name, pid := range pids {
		if s.processes[name], err = readProcess(pid); err != nil {
			return fmt.Errorf("read the cost of %s: %w", name, err)
		}
	}
	return nil
}

func (s *sample) readMachine() (err error) {
	if s.kernel, err = readKernel(); err != nil {
		return fmt.Errorf("read the cost of kernel threads: %w", err)
	}
	content, err := os.ReadFile("/proc/stat")
	if err != nil {
		return err
	}
	s.busy, err = parseBusy(string(content))
	return err
}

func readProcess(pid int) (process, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	content, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return process{}, err
	}
	st, err := parseStat(string(content))
	if err != nil {
		return process{}, err
	}
	p := process{user: st.user, system: st.system, children: st.children, threads: make(map[int]switches)}
	tasks, err := os.ReadDir(filepath.Join(dir, "task"))
	if err != nil {
		return process{}, err
	}
	for _, task := range tasks {
		id, err := strconv.Atoi(task.Name())
		if err != nil {
			return process{}, err
		}
		p.threads[id], err = readSwitches(filepath.Join(dir, "task", task.Name()))
		if gone(err) {
			delete(p.threads, id)
		} else if err != nil {
			return process{}, err
		}
	}
	return p, nil
}

func readSwitches(dir string) (switches, error) {
	content, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return switches{}, err
	}
	return parseSwitches(string(content))
}

// readKernel reads all kernel threads, such as workers and those of loop devices and file systems.
func readKernel() (map[int]thread, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	threads := make(map[int]thread)
	for _, dir := range dirs {
		t, err := readKernelThread(dir)
		if errors.Is(err, errNoKernelThread) || gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		id, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		threads[id] = t
	}
	return threads, nil
}

var errNoKernelThread = errors.New("not a kernel thread")

func readKernelThread(dir string) (thread, error) {
	content, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return thread{}, err
	}
	st, err := parseStat(string(content))
	if err != nil {
		return thread{}, err
	}
	if !st.kernel {
		return thread{}, errNoKernelThread
	}
	content, err = os.ReadFile(filepath.Join(dir, "schedstat"))
	if err != nil {
		return thread{}, err
	}
	var t thread
	if t.cpu, err = parseSchedstat(string(content)); err != nil {
		return thread{}, err
	}
	t.switches, err = readSwitches(dir)
	return t, err
}

// gone reports whether a thread has ended since it was listed.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) }
