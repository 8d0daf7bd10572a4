package accounting

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of /proc/stat and /proc/PID/stat on all Linux machines (USER_HZ).
const tick = 10 * time.Millisecond

// kernelThread is the flag of a kernel thread (PF_KTHREAD).
const kernelThread = 0x200000

type stat struct {
	kernel       bool
	user, system time.Duration
	children     time.Duration
}

// parseStat parses /proc/PID/stat. The name, in parentheses, may have spaces and parentheses.
func parseStat(content string) (stat, error) {
	end := strings.LastIndexByte(content, ')')
	// The first of these is the state, field 3 in proc(5).
	fields := strings.Fields(content[end+1:])
	if end < 0 || len(fields) < 15 {
		return stat{}, fmt.Errorf("/proc/PID/stat has %d fields after the name: %q", len(fields), content)
	}
	field := func(number int) (uint64, error) { return strconv.ParseUint(fields[number-3], 10, 64) }
	var numbers [5]uint64 // flags, utime, stime, cutime, cstime
	for i, number := range []int{9, 14, 15, 16, 17} {
		var err error
		if numbers[i], err = field(number); err != nil {
			return stat{}, fmt.Errorf("field %d of /proc/PID/stat: %w", number, err)
		}
	}
	return stat{
		kernel: numbers[0]&kernelThread != 0,
		user:   ticks(numbers[1]), system: ticks(numbers[2]),
		children: ticks(numbers[3] + numbers[4]),
	}, nil
}

func ticks(n uint64) time.Duration { return time.Duration(n) * tick }

// parseSchedstat returns the CPU time in /proc/PID/schedstat, which is in nanoseconds.
func parseSchedstat(content string) (time.Duration, error) {
	first, _, _ := strings.Cut(content, " ")
	n, err := strconv.ParseInt(first, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("/proc/PID/schedstat: %w", err)
	}
	return time.Duration(n), nil
}

func parseSwitches(content string) (switches, error) {
	var s switches
	found := 0
	for line := range strings.Lines(content) {
		name, value, _ := strings.Cut(line, ":")
		var to *int64
		switch name {
		case "voluntary_ctxt_switches":
			to = &s.voluntary
		case "nonvoluntary_ctxt_switches":
			to = &s.involuntary
		default:
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		if err != nil {
			return s, fmt.Errorf("%s in /proc/PID/status: %w", name, err)
		}
		*to = n
		found++
	}
	if found != 2 {
		return s, fmt.Errorf("/proc/PID/status has %d of the two numbers of context switches", found)
	}
	return s, nil
}

// parseBusy returns the time in /proc/stat in which CPUs were not idle, as a sum. The user time already includes
// guests.
func parseBusy(content string) (time.Duration, error) {
	line, _, _ := strings.Cut(content, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var busy uint64
	for i, name := range []string{"user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"} {
		n, err := strconv.ParseUint(fields[i+1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s in /proc/stat: %w", name, err)
		}
		switch name {
		case "idle", "iowait", "steal":
		default:
			busy += n
		}
	}
	return ticks(busy), nil
}
