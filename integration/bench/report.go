// Package bench compares thinsnap with containerd's own snapshotters overlayfs, native and devmapper. All of them serve
// one containerd in one run, take turns on one disk, and are called over containerd's socket, like by its clients. The
// kernel's part of the work is measured alone, too.
//
// `make bench` runs it, prints the table and writes all figures to .reports/bench.json. `make bench NATIVE=1` uses a
// user-mode kernel, and writes to .reports/bench-native.json.
package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// The columns of the table. All but Floor are names of snapshotters in containerd.
const (
	Floor     = "floor" // the minimum for any snapshotter on dm-thin
	Overlayfs = "overlayfs"
	// OverlayProxy is the same code as Overlayfs, in a process of its own, as every proxy plugin is.
	OverlayProxy = "overlayfs-proxy"
	Native       = "native"
	Thinsnap     = "thinsnap"
	Devmapper    = "devmapper"
)

// columns in the order of the table.
func columns() []string { return []string{Floor, Overlayfs, OverlayProxy, Native, Thinsnap, Devmapper} }

// ratios are the pairs of columns whose ratios follow the columns.
func ratios() [][2]string {
	return [][2]string{{Thinsnap, Overlayfs}, {Thinsnap, OverlayProxy}, {Devmapper, Thinsnap}}
}

// Report has the results of a run. It is not safe for concurrent use.
type Report struct {
	Environment []Fact `json:"environment"`
	Rows        []*Row `json:"rows"`
	// Details are rows that are not in the table.
	Details []*Row   `json:"details"`
	Notes   []string `json:"notes"`
}

// Fact is a fact about the place of the measurement.
type Fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Row is one quantity, measured for some of the columns.
type Row struct {
	Case    string             `json:"case"`
	Name    string             `json:"name"`
	Unit    string             `json:"unit"`
	Columns map[string]*Series `json:"columns"`
}

// Series are the values of one quantity in one column.
type Series struct {
	Values []float64
	// Mark refers to a note; it may be empty.
	Mark string
}

// Fact adds a fact.
func (r *Report) Fact(name, value string) {
	r.Environment = append(r.Environment, Fact{name, value})
}

// Note adds a note, once.
func (r *Report) Note(format string, args ...any) {
	note := fmt.Sprintf(format, args...)
	if !slices.Contains(r.Notes, note) {
		r.Notes = append(r.Notes, note)
	}
}

// Add adds values to one column of a row. It makes the row if the case has none of that name.
func (r *Report) Add(group, name, unit, column string, values ...float64) *Series {
	return addRow(&r.Rows, group, name, unit, column, values)
}

// addRow inserts a new row after the last one of its case.
func addRow(rows *[]*Row, group, name, unit, column string, values []float64) *Series {
	i := slices.IndexFunc(*rows, func(row *Row) bool { return row.Case == group && row.Name == name })
	if i < 0 {
		i = len(*rows)
		for j, row := range *rows {
			if row.Case == group {
				i = j + 1
			}
		}
		*rows = slices.Insert(*rows, i, &Row{Case: group, Name: name, Unit: unit, Columns: make(map[string]*Series)})
	}
	series := (*rows)[i].Columns[column]
	if series == nil {
		series = new(Series)
		(*rows)[i].Columns[column] = series
	}
	series.Values = append(series.Values, values...)
	return series
}

// WriteTable writes the report as text.
func (r *Report) WriteTable(out io.Writer) error {
	for _, fact := range r.Environment {
		if _, err := fmt.Fprintf(out, "%s: %s\n", fact.Name, fact.Value); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprint(out, "\nmedian ≤95th percentile ×samples\n\n"); err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	// Flush returns Fprintln's errors, too.
	line := func(cells ...string) { fmt.Fprintln(table, strings.Join(cells, "\t")) }
	heading := append([]string{"case", "", "unit"}, columns()...)
	for _, ratio := range ratios() {
		heading = append(heading, ratio[0]+"/"+ratio[1])
	}
	line(heading...)
	previous := ""
	for _, row := range r.Rows {
		group := row.Case
		if group == previous {
			group = ""
		}
		previous = row.Case
		line(append([]string{group, row.Name, row.Unit}, row.cells()...)...)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, note := range r.Notes {
		if _, err := fmt.Fprintf(out, "\n- %s", note); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(out)
	return err
}

func (row *Row) cells() []string {
	var cells []string
	for _, column := range columns() {
		cell := ""
		if series := row.Columns[column]; series != nil {
			cell = series.String()
		}
		cells = append(cells, cell)
	}
	for _, ratio := range ratios() {
		cells = append(cells, row.ratio(ratio))
	}
	return cells
}

func (row *Row) ratio(of [2]string) string {
	dividend, divisor := row.Columns[of[0]], row.Columns[of[1]]
	if dividend == nil || divisor == nil || divisor.Median() == 0 {
		return ""
	}
	return number(dividend.Median() / divisor.Median())
}

// Median returns the middle value, or the mean of the two middle ones; NaN if there is none.
func (s *Series) Median() float64 {
	sorted := slices.Sorted(slices.Values(s.Values))
	n := len(sorted)
	if n == 0 {
		return math.NaN()
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// P95 returns the smallest value that 95 % of the values do not exceed; NaN if there is none.
func (s *Series) P95() float64 {
	sorted := slices.Sorted(slices.Values(s.Values))
	if len(sorted) == 0 {
		return math.NaN()
	}
	return sorted[int(math.Ceil(0.95*float64(len(sorted))))-1]
}

// String returns the series as a cell of the table.
func (s *Series) String() string {
	if len(s.Values) == 1 {
		return number(s.Values[0]) + s.Mark
	}
	return fmt.Sprintf("%s%s ≤%s ×%d", number(s.Median()), s.Mark, number(s.P95()), len(s.Values))
}

// MarshalJSON encodes the values and their statistics in the table.
func (s *Series) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{
		"median": s.Median(), "p95": s.P95(), "samples": len(s.Values), "mark": s.Mark, "values": s.Values,
	})
}

// number formats f with about three significant digits.
func number(f float64) string {
	switch digits := math.Abs(f); {
	case digits == math.Trunc(digits), digits >= 100:
		return fmt.Sprintf("%.0f", f)
	case digits >= 10:
		return fmt.Sprintf("%.1f", f)
	default:
		return fmt.Sprintf("%.2f", f)
	}
}
