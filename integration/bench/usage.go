package bench

import (
	"maps"
	"slices"
	"time"

	"github.com/thinsnap/thinsnap/integration/accounting"
)

// The processes whose costs are counted separately.
const (
	client       = "client"
	containerd   = "containerd"
	proxyProcess = "proxy" // a snapshotter that is a process of its own
)

// processes in the order of the table.
func processes() []string { return []string{client, containerd, proxyProcess} }

// AddUsage adds the average usage of one operation, and its duration.
func (r *Report) AddUsage(group, column string, wall time.Duration, u accounting.Usage) {
	add := func(name, unit string, value float64) { r.Add(group, name, unit, column, value) }
	add("time", "ms", milliseconds(wall))
	add("CPU of the whole machine", "ms", milliseconds(u.Busy))
	switches := u.Kernel.Voluntary + u.Kernel.Involuntary
	for _, c := range u.Processes {
		switches += c.Voluntary + c.Involuntary
	}
	add("CPU of these processes and the kernel's threads", "ms", milliseconds(u.CPU()))
	for _, name := range processes() {
		c, ok := u.Processes[name]
		if !ok {
			continue
		}
		add("CPU of "+name+", user", "ms", milliseconds(c.User))
		add("CPU of "+name+", system", "ms", milliseconds(c.System))
		if c.Programs != 0 {
			add("CPU of programs that "+name+" executed", "ms", milliseconds(c.Programs))
		}
	}
	add("CPU of the kernel's threads", "ms", milliseconds(u.Kernel.CPU()))
	add("context switches", "", switches)
	for _, name := range processes() {
		if c, ok := u.Processes[name]; ok {
			add("context switches of "+name+", voluntary", "", c.Voluntary)
			add("context switches of "+name+", involuntary", "", c.Involuntary)
		}
	}
	add("context switches of the kernel's threads", "", u.Kernel.Voluntary+u.Kernel.Involuntary)
	if u.Ended >= 0.05 {
		add("threads ended", "", u.Ended)
	}
}

// AddCalls adds a process's system calls in n operations: by class to the table, and by name to the details.
func (r *Report) AddCalls(group, column, process string, n int, calls map[string]int) {
	const row = "system calls of "
	sums := make(map[string]int)
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		count := calls[name]
		sums[class(name)] += count
		addRow(&r.Details, group, row+process+": "+name, "", column, []float64{float64(count) / float64(n)})
	}
	for _, name := range classes() {
		r.Add(group, row+process+": "+name, "", column, float64(sums[name])/float64(n))
	}
}

// Classes of system calls.
const (
	otherCalls  = "work"
	ioctlCalls  = "ioctl"
	syncCalls   = "fdatasync and fsync"
	goCalls     = "Go's scheduler and clock"
	memoryCalls = "memory"
)

// classes returns the classes in the table's order.
func classes() []string { return []string{otherCalls, ioctlCalls, syncCalls, memoryCalls, goCalls} }

// class returns the class of a system call. The calls of Go's scheduler depend on the speed of everything else, and
// Go's clock is a system call only on some kernels.
func class(name string) string {
	switch name {
	case "ioctl":
		return ioctlCalls
	case "fdatasync", "fsync", "sync_file_range", "syncfs":
		return syncCalls
	case "mmap", "munmap", "madvise", "mprotect", "brk":
		return memoryCalls
	case "futex", "nanosleep", "clock_nanosleep", "clock_gettime", "gettimeofday", "sched_yield", "epoll_pwait",
		"epoll_wait", "tgkill", "getpid", "gettid", "rt_sigreturn", "rt_sigprocmask", "restart_syscall", "clone",
		"clone3", "sigaltstack", "timer_create", "timer_settime", "timer_delete", "set_robust_list", "rseq":
		return goCalls
	default:
		return otherCalls
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
