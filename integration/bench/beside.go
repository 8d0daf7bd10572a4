package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// WriteBeside writes the rows that two reports have in common, such as those of two kernels, as text: for each report
// the floor, both forms of overlayfs, thinsnap, and its ratios to overlayfs. Ratios can be compared between machines.
func (r *Report) WriteBeside(out io.Writer, other *Report) error {
	peers := []string{Overlayfs, OverlayProxy}
	shown := []string{Floor, Overlayfs, OverlayProxy, Thinsnap}
	for i, report := range []*Report{r, other} {
		if _, err := fmt.Fprintf(out, "%d: %s\n", i+1, report.machine()); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprint(out, "\nmedians\n\n"); err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	// Flush returns Fprintln's errors, too.
	line := func(cells ...string) { fmt.Fprintln(table, strings.Join(cells, "\t")) }
	heading := []string{"case", "", "unit"}
	for i := range 2 {
		for _, column := range shown {
			heading = append(heading, fmt.Sprintf("%d: %s", i+1, column))
		}
		for _, peer := range peers {
			heading = append(heading, fmt.Sprintf("%d: %s/%s", i+1, Thinsnap, peer))
		}
	}
	line(heading...)
	previous := ""
	for _, row := range r.Rows {
		peer := other.row(row.Case, row.Name)
		if peer == nil || !slices.ContainsFunc(shown, func(column string) bool {
			return row.Columns[column] != nil && peer.Columns[column] != nil
		}) {
			continue
		}
		group := row.Case
		if group == previous {
			group = ""
		}
		previous = row.Case
		cells := []string{group, row.Name, row.Unit}
		for _, of := range []*Row{row, peer} {
			for _, column := range shown {
				cell := ""
				if series := of.Columns[column]; series != nil {
					cell = number(series.Median()) + series.Mark
				}
				cells = append(cells, cell)
			}
			for _, peer := range peers {
				cells = append(cells, of.ratio([2]string{Thinsnap, peer}))
			}
		}
		line(cells...)
	}
	return table.Flush()
}

// machine returns the place and time of the measurement.
func (r *Report) machine() string {
	var parts []string
	for _, fact := range r.Environment {
		switch fact.Name {
		case "kernel", "CPUs", "thinsnap", "time":
			parts = append(parts, fact.Name+" "+fact.Value)
		}
	}
	return strings.Join(parts, ", ")
}

func (r *Report) row(group, name string) *Row {
	for _, row := range r.Rows {
		if row.Case == group && row.Name == name {
			return row
		}
	}
	return nil
}

// UnmarshalJSON reads the output of [Series.MarshalJSON].
func (s *Series) UnmarshalJSON(encoded []byte) error {
	var read struct {
		Values []float64 `json:"values"`
		Mark   string    `json:"mark"`
	}
	if err := json.Unmarshal(encoded, &read); err != nil {
		return err
	}
	s.Values, s.Mark = read.Values, read.Mark
	return nil
}
