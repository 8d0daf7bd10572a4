package accounting

import "time"

// Usage is the usage in an interval, or the average usage of an operation.
type Usage struct {
	Duration  time.Duration
	Processes map[string]Cost
	// Kernel is the usage of kernel threads. The kernel's work in a process's system calls is in that process's system
	// time.
	Kernel Cost
	// Busy includes everything: all processes, kernel threads, interrupts, and the meter.
	Busy time.Duration
	// Ended is the number of these processes' and the kernel's threads that have ended. Their last context switches are
	// missing, and for the kernel's also their last CPU time.
	Ended float64
}

// Cost is the usage of one process, or of all kernel threads together.
type Cost struct {
	User, System time.Duration // all time of kernel threads is System
	// Programs is the CPU time of executed programs that have ended.
	Programs time.Duration
	// Voluntary context switches are waits; involuntary ones give the CPU to another thread.
	Voluntary, Involuntary float64
}

// CPU returns all CPU time.
func (c Cost) CPU() time.Duration { return c.User + c.System + c.Programs }

// since returns the usage since an earlier sample of the same processes.
func (s *sample) since(before sample) Usage {
	u := Usage{Duration: s.at.Sub(before.at), Processes: make(map[string]Cost), Busy: s.busy - before.busy}
	for name, p := range s.processes {
		b := before.processes[name]
		c := Cost{User: p.user - b.user, System: p.system - b.system, Programs: p.children - b.children}
		for id, n := range p.threads {
			c.addSwitches(n, b.threads[id])
		}
		for id := range b.threads {
			if _, ok := p.threads[id]; !ok {
				u.Ended++
			}
		}
		u.Processes[name] = c
	}
	for id, t := range s.kernel {
		b := before.kernel[id]
		u.Kernel.System += t.cpu - b.cpu
		u.Kernel.addSwitches(t.switches, b.switches)
	}
	for id := range before.kernel {
		if _, ok := s.kernel[id]; !ok {
			u.Ended++
		}
	}
	return u
}

func (c *Cost) addSwitches(after, before switches) {
	c.Voluntary += float64(after.voluntary - before.voluntary)
	c.Involuntary += float64(after.involuntary - before.involuntary)
}

// CPU returns the CPU time of these processes and of the kernel threads.
func (u Usage) CPU() time.Duration {
	sum := u.Kernel.CPU()
	for _, c := range u.Processes {
		sum += c.CPU()
	}
	return sum
}

// Less returns u minus the usage of an idle machine in the same time. idle may have another duration.
func (u Usage) Less(idle Usage) Usage {
	if idle.Duration <= 0 {
		return u
	}
	return u.combine(idle, -float64(u.Duration)/float64(idle.Duration))
}

// Per returns the usage of one of n operations; n is at least 1.
func (u Usage) Per(n int) Usage { return Usage{}.combine(u, 1/float64(n)) }

// combine returns u plus other times factor. If factor is negative, the duration is u's.
func (u Usage) combine(other Usage, factor float64) Usage {
	sum := Usage{
		Duration:  u.Duration,
		Processes: make(map[string]Cost),
		Kernel:    u.Kernel.plus(other.Kernel, factor),
		Busy:      u.Busy + scale(other.Busy, factor),
		Ended:     u.Ended + other.Ended*factor,
	}
	if factor > 0 {
		sum.Duration += scale(other.Duration, factor)
	}
	for name := range other.Processes {
		sum.Processes[name] = u.Processes[name].plus(other.Processes[name], factor)
	}
	return sum
}

func (c Cost) plus(other Cost, factor float64) Cost {
	return Cost{
		User:        c.User + scale(other.User, factor),
		System:      c.System + scale(other.System, factor),
		Programs:    c.Programs + scale(other.Programs, factor),
		Voluntary:   c.Voluntary + other.Voluntary*factor,
		Involuntary: c.Involuntary + other.Involuntary*factor,
	}
}

func scale(d time.Duration, factor float64) time.Duration { return time.Duration(float64(d) * factor) }
