package bench

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

var (
	casesFlag        = flag.String("cases", "", "run only these cases, separated by commas")
	snapshottersFlag = flag.String("snapshotters", "", "run only these snapshotters, separated by commas")
	storageFlag      = flag.String("storage", "memory", "place of all data: memory, to measure only the software, or disk, which is the blank disk $THINSNAP_DISK0")
	lvmFlag          = flag.Bool("lvm", false, "give thinsnap a pool on a disk of its own, by LVM, instead of in files")
	jsonFlag         = flag.String("json", "", "write all figures to this file")
	profilesFlag     = flag.String("profiles", "", "write profiles of some loads to this directory")
	perfFlag         = flag.Bool("perf", false, "also profile the machine with perf, which takes minutes to start in an emulated guest")
	besideFlag       = flag.String("beside", "", "show the figures of this file, written by -json on another kernel, beside these")
)

// cases in the order in which they run: the first needs unused pools.
var cases = []struct {
	name    string
	run     func(*suite)
	proxied bool // overlayfs takes part as a proxy, too
}{
	{"bytes", benchBytes, false},
	{"floor", benchFloor, false},
	{"first", benchFirst, true},
	{"child", benchChild, true},
	{"view", benchView, true},
	{"mounts", benchMounts, true},
	{"commit", benchCommit, true},
	{"remove", benchRemove, true},
	{"pairs", benchPairs, true},
	{"burst", benchBurst, true},
	{"pull", benchPull, true},
	{"layers", benchLayers, true},
	{"mixed", benchMixed, false},
	{"run", benchRun, false},
	{"diff", benchDiff, false},
	{"chain", benchChain, false},
	{"costs", benchCosts, false},
	{"prices", benchPrices, false},
	{"usage", benchUsage, true},
	{"calls", benchCalls, true},
	{"profile", benchProfile, false},
	{"many", benchMany, false},
}

// BenchmarkSnapshotters samples by itself: run it once, with -benchtime 1x.
func BenchmarkSnapshotters(b *testing.B) {
	dmtest.RequireKernel(b)
	var names []string
	for _, c := range cases {
		names = append(names, c.name)
	}
	chosen := choose(b, *casesFlag, names)
	s := newSuite(b, choose(b, *snapshottersFlag, columns()[1:]))
	for _, c := range cases {
		if !slices.Contains(chosen, c.name) {
			continue
		}
		b.Run(c.name, func(b *testing.B) {
			start := time.Now()
			s.begin(b, c.name, c.proxied)
			defer s.end()
			c.run(s)
			b.ReportMetric(0, "ns/op") // left out, because it has no meaning here
			b.ReportMetric(time.Since(start).Seconds(), "s")
		})
		s.save(b)
	}
	fmt.Println()
	require.NoError(b, s.report.WriteTable(os.Stdout))
	fmt.Println()
	s.beside(b)
}

// choose splits the value of a flag; an empty value selects all.
func choose(t testing.TB, value string, all []string) []string {
	t.Helper()
	if value == "" {
		return all
	}
	chosen := strings.Split(value, ",")
	for _, name := range chosen {
		require.Contains(t, all, name)
	}
	return chosen
}

func (s *suite) save(t testing.TB) {
	t.Helper()
	if *jsonFlag == "" {
		return
	}
	encoded, err := json.MarshalIndent(s.report, "", "  ")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(*jsonFlag, append(encoded, '\n'), 0o644))
}

// beside shows another run's figures next to this one's, if they are asked for and exist.
func (s *suite) beside(t testing.TB) {
	t.Helper()
	if *besideFlag == "" {
		return
	}
	encoded, err := os.ReadFile(*besideFlag)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	require.NoError(t, err)
	other := new(Report)
	require.NoError(t, json.Unmarshal(encoded, other))
	require.NoError(t, s.report.WriteBeside(os.Stdout, other))
}
