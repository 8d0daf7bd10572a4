package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/thinsnap/thinsnap/internal/adopt/plan"
)

// mostRows is the number of rows up to which the table is complete.
const mostRows = 100

// becomes is the word in a row's first column.
func becomes(p plan.Plan, r plan.Row) string {
	switch {
	case r.Becomes == plan.LeftOut && !p.Options.LeaveOutDamaged:
		return "damaged"
	case r.Becomes == plan.AdoptedView:
		return string(plan.Adopted)
	}
	return strings.ReplaceAll(string(r.Becomes), "-", " ")
}

// needsAttention reports whether a row is anything but an adopted snapshot without a problem.
func needsAttention(r plan.Row) bool {
	return r.Problem != "" || r.Becomes != plan.Adopted && r.Becomes != plan.AdoptedView
}

// writePlanRows writes the table, with the rows that need attention first. In a long table, adopted
// snapshots are only counted.
func writePlanRows(b *strings.Builder, colour palette, p plan.Plan, all bool) {
	rows := slices.Clone(p.Rows)
	slices.SortStableFunc(rows, func(x, y plan.Row) int { return urgency(p, x) - urgency(p, y) })
	odd := 0
	for odd < len(rows) && needsAttention(rows[odd]) {
		odd++
	}
	listed := len(rows)
	if !all && listed > mostRows {
		listed = min(odd, mostRows)
	}
	table := [][]string{{"BECOMES", "NAMESPACE", "NAME", "KIND", "SIZE", "VOLUME", "DEVICE"}}
	for _, r := range rows[:listed] {
		table = append(table, planRow(p, r))
	}
	for i, line := range align(colour, table) {
		if i == 0 && listed == 0 {
			continue
		}
		b.WriteString(line + "\n")
		if i == 0 {
			continue
		}
		if r := rows[i-1]; r.Problem != "" {
			fmt.Fprintf(b, "    %s\n", printable(r.Problem))
			writeRemedy(b, r.Remedy)
		}
	}
	if more := odd - listed; more > 0 {
		fmt.Fprintf(b, "and %s that are not adopted: --all lists them\n", plural(more, "more row"))
	}
	if listed < len(rows) {
		writeCounts(b, rows[odd:])
	}
	writeLegend(b, p)
}

func writeRemedy(b *strings.Builder, remedy string) {
	if remedy != "" {
		fmt.Fprintf(b, "    remedy: %s\n", printable(remedy))
	}
}

// urgency orders rows for the operator: damaged snapshots first.
func urgency(p plan.Plan, r plan.Row) int {
	switch {
	case becomes(p, r) == "damaged":
		return 0
	case r.Becomes == plan.LeftOut:
		return 1
	case needsAttention(r):
		return 2
	}
	return 3
}

func planRow(p plan.Plan, r plan.Row) []string {
	name := r.Name
	if name == "" {
		name = r.Key
	}
	if !needsAttention(r) {
		name = shortKey(name)
	}
	volume, bytes := "-", "-"
	if r.VolumeID != 0 {
		volume = decimal(uint64(r.VolumeID))
	}
	if r.Bytes != 0 {
		bytes = size(r.Bytes)
	}
	return []string{
		becomes(p, r), orDash(printable(r.Namespace)), orDash(printable(name)), r.Kind, bytes, volume,
		orDash(printable(r.Device)),
	}
}

// writeCounts counts adopted snapshots in each namespace.
func writeCounts(b *strings.Builder, rows []plan.Row) {
	kinds := make(map[string]map[string]int)
	var order []string
	for _, r := range rows {
		if kinds[r.Namespace] == nil {
			kinds[r.Namespace] = make(map[string]int)
			order = append(order, r.Namespace)
		}
		kinds[r.Namespace][r.Kind]++
	}
	slices.Sort(order)
	for _, ns := range order {
		n := kinds[ns]
		fmt.Fprintf(b, "adopted in namespace %s: %d active, %d committed, %s\n", printable(ns), n[plan.KindActive],
			n[plan.KindCommitted], plural(n[plan.KindView], "view"))
	}
	b.WriteString("--all lists them\n")
}

// writeLegend explains the words in the table's first column.
func writeLegend(b *strings.Builder, p plan.Plan) {
	b.WriteString("\n")
	said := make(map[string]bool)
	for _, r := range p.Rows {
		said[becomes(p, r)] = true
		said[r.Kind] = said[r.Kind] || r.Becomes == plan.AdoptedView
	}
	for _, line := range [][2]string{
		{"adopted", "thinsnap has it under the same name, with its data"},
		{plan.KindView, "adopted, but shows its parent's volume; its own volume is kept"},
		{"damaged", "prevents the adoption; --leave-out-damaged leaves it out"},
		{"left out", "not adopted; its container does not start, and can be removed; its volume, if it has one, is kept"},
		{"kept", "the volume stays in the pool, and `thinsnap leftovers` lists it"},
		{"dropped", "a record of the built-in without a volume, so there is nothing to adopt"},
		{"foreign", "the volume is not proved to be the built-in's, and is not changed"},
	} {
		if said[line[0]] {
			fmt.Fprintf(b, "%s: %s\n", line[0], line[1])
		}
	}
	if p.Foreign > 0 {
		fmt.Fprintf(b, "The pool has %s in no database. thinsnap does not change them.\n",
			plural(p.Foreign, "volume"))
	}
}
