package accounting

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const ms = time.Millisecond

func TestParseStat(t *testing.T) {
	const numbers = " S 2 0 0 0 -1 FLAGS 0 0 0 0 12 34 5 6 20 0 1 0 49 0 0"
	line := func(name, flags string) string {
		return "7 (" + name + ")" + strings.Replace(numbers, "FLAGS", flags, 1)
	}
	want := stat{user: 120 * ms, system: 340 * ms, children: 110 * ms}
	kernel := want
	kernel.kernel = true
	tests := map[string]struct {
		content string
		want    stat
		fails   string
	}{
		"process":              {line("thinsnap", "4194560"), want, ""},
		"kernel thread":        {line("kworker/0:1-events", "69238880"), kernel, ""},
		"name with a ) and  a": {line("a) S 1 (b", "4194560"), want, ""},
		"cut off":              {"7 (thinsnap) S 2 0", stat{}, "3 fields"},
		"no name":              {"7", stat{}, "fields"},
		"not a number":         {line("thinsnap", "x"), stat{}, "field 9"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parseStat(tt.content)
			if tt.fails != "" {
				require.ErrorContains(t, err, tt.fails)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestParseOthers(t *testing.T) {
	cpu, err := parseSchedstat("1234567 89 12\n")
	require.NoError(t, err)
	require.Equal(t, time.Duration(1234567), cpu)
	_, err = parseSchedstat("")
	require.Error(t, err)

	n, err := parseSwitches("Name:\ta\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t545\n")
	require.NoError(t, err)
	require.Equal(t, switches{150, 545}, n)
	_, err = parseSwitches("Name:\ta\nvoluntary_ctxt_switches:\t150\n")
	require.ErrorContains(t, err, "1 of the two")

	busy, err := parseBusy("cpu  1 2 4 1000 1000 8 16 1000 1000 0\ncpu0 1\n")
	require.NoError(t, err)
	require.Equal(t, 310*ms, busy)
	_, err = parseBusy("intr 1\n")
	require.Error(t, err)
}

func TestUsage(t *testing.T) {
	begin := time.Now()
	before := sample{
		at: begin, busy: time.Second,
		processes: map[string]process{"a": {
			user: 10 * ms, system: 20 * ms, children: 30 * ms,
			threads: map[int]switches{1: {100, 10}, 2: {5, 5}},
		}},
		kernel: map[int]thread{7: {cpu: 50 * ms, switches: switches{1, 1}}, 8: {cpu: ms}},
	}
	after := sample{
		at: begin.Add(2 * time.Second), busy: 2 * time.Second,
		processes: map[string]process{"a": {
			user: 110 * ms, system: 60 * ms, children: 30 * ms,
			// Thread 2 has ended, 3 is new.
			threads: map[int]switches{1: {140, 12}, 3: {4, 2}},
		}},
		kernel: map[int]thread{7: {cpu: 60 * ms, switches: switches{3, 2}}, 9: {cpu: 2 * ms, switches: switches{1, 0}}},
	}
	used := after.since(before)
	require.Equal(t, Usage{
		Duration:  2 * time.Second,
		Processes: map[string]Cost{"a": {User: 100 * ms, System: 40 * ms, Voluntary: 44, Involuntary: 4}},
		Kernel:    Cost{System: 12 * ms, Voluntary: 3, Involuntary: 1},
		Busy:      time.Second,
		Ended:     2,
	}, used)

	idle := Usage{
		Duration:  4 * time.Second,
		Processes: map[string]Cost{"a": {User: 8 * ms, Voluntary: 8}},
		Kernel:    Cost{System: 4 * ms},
		Busy:      20 * ms,
	}
	require.Equal(t, Usage{
		Duration:  500 * ms,
		Processes: map[string]Cost{"a": {User: 24 * ms, System: 10 * ms, Voluntary: 10, Involuntary: 1}},
		Kernel:    Cost{System: 2500 * time.Microsecond, Voluntary: 0.75, Involuntary: 0.25},
		Busy:      247500 * time.Microsecond,
		Ended:     0.5,
	}, used.Less(idle).Per(4))
	require.Equal(t, used, used.Less(Usage{}), "without an idle time, nothing is subtracted")
	require.Equal(t, 140*ms, used.Processes["a"].CPU())
	require.Equal(t, 152*ms, used.CPU())
}

// TestMeter uses CPU time in this process and in a program that it executes, and ends a thread meanwhile, until the
// usage is measurable.
func TestMeter(t *testing.T) {
	m, err := Start(map[string]int{"test": os.Getpid()})
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	}()
	<-ended
	require.NoError(t, exec.Command("sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done").Run())
	spun := 0
	var used Usage
	for used.Processes["test"].User < 30*ms {
		for range 10_000_000 {
			spun++
		}
		used, err = m.Read()
		require.NoError(t, err)
	}
	cost := used.Processes["test"]
	require.Positive(t, cost.Programs)
	require.Positive(t, cost.Voluntary, "it waited for the program")
	require.GreaterOrEqual(t, used.Kernel.System, time.Duration(0))
	require.Positive(t, spun)
}
