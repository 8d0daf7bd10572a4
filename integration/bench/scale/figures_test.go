package scale

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"text/tabwriter"
	"time"
)

type figure struct {
	Name  string  `json:"name"`
	Unit  string  `json:"unit"`
	Value float64 `json:"value"`
}

// A result has all figures for one number of snapshots.
type result struct {
	Snapshots int      `json:"snapshots"`
	Figures   []figure `json:"figures"`
}

func (r *result) add(name, unit string, value float64) {
	r.Figures = append(r.Figures, figure{name, unit, value})
}

// get returns the figure, or NaN if it was not measured.
func (r *result) get(name string) float64 {
	for _, f := range r.Figures {
		if f.Name == name {
			return f.Value
		}
	}
	return math.NaN()
}

// quantile returns the duration that the fraction q of the durations do not exceed.
func quantile(d []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(d))
	return sorted[max(int(math.Ceil(q*float64(len(sorted))))-1, 0)]
}

func median(d []time.Duration) time.Duration { return quantile(d, 0.5) }

func milliseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

func mebibytes(kib int) float64 { return float64(kib) / 1024 }

// printTable prints results side by side, with the ratios to the first.
func printTable(w io.Writer, results []*result) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "snapshots\t\t")
	for _, r := range results {
		fmt.Fprintf(table, "%d\t", r.Snapshots)
	}
	for _, r := range results[1:] {
		fmt.Fprintf(table, "%d : %d\t", r.Snapshots, results[0].Snapshots)
	}
	fmt.Fprintln(table)
	for _, f := range results[0].Figures {
		fmt.Fprintf(table, "%s\t%s\t", f.Name, f.Unit)
		for _, r := range results {
			fmt.Fprintf(table, "%s\t", number(r.get(f.Name)))
		}
		for _, r := range results[1:] {
			fmt.Fprintf(table, "%s\t", ratio(r.get(f.Name), f.Value))
		}
		fmt.Fprintln(table)
	}
	return table.Flush()
}

// number formats v with three significant digits.
func number(v float64) string {
	switch {
	case v == math.Trunc(v) || math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	case math.Abs(v) >= 1:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}

func ratio(v, of float64) string {
	if of == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", v/of)
}

// writeJSON writes the results to the file $THINSNAP_BENCH_JSON, if it is set.
func writeJSON(results []*result) error {
	path := os.Getenv("THINSNAP_BENCH_JSON")
	if path == "" {
		return nil
	}
	content, err := json.MarshalIndent(struct {
		Benchmark string    `json:"benchmark"`
		Kernel    string    `json:"kernel"`
		Results   []*result `json:"results"`
	}{"scale", "faked", results}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(content, '\n'), 0o644)
}
