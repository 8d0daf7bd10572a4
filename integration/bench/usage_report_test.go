package bench

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/accounting"
)

func TestAddUsage(t *testing.T) {
	const ms = time.Millisecond
	var r Report
	r.AddUsage("usage, View", Overlayfs, 4*ms, accounting.Usage{
		Processes: map[string]accounting.Cost{
			client:     {User: ms, Voluntary: 2},
			containerd: {User: 2 * ms, System: ms, Voluntary: 3, Involuntary: 1},
		},
		Kernel: accounting.Cost{System: ms, Voluntary: 4},
		Busy:   6 * ms,
	})
	r.AddUsage("usage, View", Thinsnap, 8*ms, accounting.Usage{
		Processes: map[string]accounting.Cost{
			client:       {User: ms, Voluntary: 2},
			containerd:   {User: 2 * ms, System: ms, Programs: ms, Voluntary: 3, Involuntary: 1},
			proxyProcess: {User: 2 * ms, System: 2 * ms, Voluntary: 5, Involuntary: 5},
		},
		Kernel: accounting.Cost{System: ms, Voluntary: 3, Involuntary: 1},
		Busy:   12 * ms,
	})
	r.AddCalls("usage, View", Thinsnap, proxyProcess, 2, map[string]int{
		"futex": 4, "clock_gettime": 6, "ioctl": 2, "fdatasync": 2, "fsync": 1, "openat": 3, "read": 4, "mmap": 1,
	})
	none := math.NaN()
	want := map[string][2]float64{
		"time":                     {4, 8},
		"CPU of the whole machine": {6, 12},
		"CPU of these processes and the kernel's threads": {5, 10},
		"CPU of client, user":                             {1, 1},
		"CPU of client, system":                           {0, 0},
		"CPU of containerd, user":                         {2, 2},
		"CPU of containerd, system":                       {1, 1},
		"CPU of programs that containerd executed":        {none, 1},
		"CPU of proxy, user":                              {none, 2},
		"CPU of proxy, system":                            {none, 2},
		"CPU of the kernel's threads":                     {1, 1},
		"context switches":                                {10, 20},
		"context switches of client, voluntary":           {2, 2},
		"context switches of client, involuntary":         {0, 0},
		"context switches of containerd, voluntary":       {3, 3},
		"context switches of containerd, involuntary":     {1, 1},
		"context switches of proxy, voluntary":            {none, 5},
		"context switches of proxy, involuntary":          {none, 5},
		"context switches of the kernel's threads":        {4, 4},
		"system calls of proxy: work":                     {none, 3.5},
		"system calls of proxy: ioctl":                    {none, 1},
		"system calls of proxy: fdatasync and fsync":      {none, 1.5},
		"system calls of proxy: memory":                   {none, 0.5},
		"system calls of proxy: " + goCalls:               {none, 5},
	}
	require.Len(t, r.Rows, len(want))
	for _, row := range r.Rows {
		require.Equal(t, "usage, View", row.Case)
		require.Contains(t, want, row.Name)
		for i, column := range []string{Overlayfs, Thinsnap} {
			if series := row.Columns[column]; series != nil {
				require.InDelta(t, want[row.Name][i], series.Median(), 0, row.Name)
			} else {
				require.True(t, math.IsNaN(want[row.Name][i]), row.Name)
			}
		}
	}
	require.Len(t, r.Details, 8)
	require.Equal(t, "system calls of proxy: clock_gettime", r.Details[0].Name)
	require.Equal(t, []float64{3}, r.Details[0].Columns[Thinsnap].Values)
}

func TestReadAgain(t *testing.T) {
	var r, read Report
	r.Add("first", "Prepare", "ms", Thinsnap, 2, 3).Mark = "*"
	encoded, err := json.Marshal(r)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(encoded, &read))
	require.Equal(t, r, read)
}

func TestBeside(t *testing.T) {
	var r, other Report
	for i, report := range []*Report{&r, &other} {
		report.Fact("kernel", []string{"7.2", "6.1"}[i])
		report.Fact("storage", "somewhere")
		report.Fact("CPUs", "1, emulated (TCG)")
		report.Add("child", "Prepare", "ms", Overlayfs, float64(2+i))
		report.Add("child", "Prepare", "ms", Thinsnap, float64(4+i), float64(4+i))
	}
	other.Add("child", "Prepare", "ms", OverlayProxy, 2.5)
	r.Add("prices", "a system call", "µs", Floor, 11)
	other.Add("prices", "a system call", "µs", Floor, 1)
	r.Add("child", "View", "ms", Thinsnap, 1)
	var table strings.Builder
	require.NoError(t, r.WriteBeside(&table, &other))
	require.Equal(t, `1: kernel 7.2, CPUs 1, emulated (TCG)
2: kernel 6.1, CPUs 1, emulated (TCG)

medians

case                   unit  1: floor  1: overlayfs  1: overlayfs-proxy  1: thinsnap  1: thinsnap/overlayfs  1: thinsnap/overlayfs-proxy  2: floor  2: overlayfs  2: overlayfs-proxy  2: thinsnap  2: thinsnap/overlayfs  2: thinsnap/overlayfs-proxy
child   Prepare        ms              2                                 4            2                                                             3             2.50                5            1.67                   2
prices  a system call  µs    11                                                                                                           1                                                                               
`, table.String())
}
