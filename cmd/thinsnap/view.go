package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// view formats a watcher.
type view struct {
	key    func(string) string
	colour palette
}

// lines returns at most height lines, or the fixed part at the top if that is longer.
func (v view) lines(w *watcher, height int) []string {
	lines := v.head(w)
	lines = append(lines, "")
	lines = append(lines, align(v.colour, v.calls(w))...)
	if running := w.activity.Running; len(running) > 0 {
		lines = append(lines, "")
		lines = append(lines, align(v.colour, v.running(w, max(1, (height-len(lines)-6)/2)))...)
	}
	if trash := w.activity.Trash; len(trash) > 0 {
		lines = append(lines, "")
		lines = append(lines, align(v.colour, v.trash(w, max(1, (height-len(lines)-5)/3)))...)
	}
	if left := height - len(lines) - 2; left > 0 && len(w.snapshots) > 0 {
		lines = append(lines, "")
		lines = append(lines, align(v.colour, v.largest(w, left))...)
	}
	return lines
}

func (v view) head(w *watcher) []string {
	i := &w.info
	c := v.colour
	lines := []string{
		fmt.Sprintf("%s %s  %s  %s, %s  up %s", c.bold("pool"), i.Pool.Name, c.state(&i.Pool), i.Pool.Mode, i.Filesystem.Type,
			time.Duration(i.Daemon.UptimeSeconds)*time.Second),
	}
	for _, s := range []struct {
		name  string
		space *admin.Space
	}{{"data", &i.Pool.Data}, {"metadata", &i.Pool.Metadata}} {
		lines = append(lines, fmt.Sprintf("%-9s %s %s  %s used, %s available", s.name, v.bar(s.space, 40),
			c.level(s.space.Level, fmt.Sprintf("%5.1f%%", full(s.space))), size(s.space.Used), size(s.space.Available)))
	}
	n, d := i.Snapshots, i.Devices
	return append(lines,
		fmt.Sprintf("snapshots %d: %d committed, %d active, %d view", n.Committed+n.Active+n.View, n.Committed, n.Active,
			n.View),
		fmt.Sprintf("volumes   %d active, %d of them spare; %d in the trash, %d deferred because in use",
			d.Active, d.Spares, d.Trash, i.Background.Deferred))
}

// full returns the fill level of a space, in percent of its used and available bytes.
func full(s *admin.Space) float64 {
	if s.Used+s.Available == 0 {
		return 100
	}
	return float64(s.Used) / float64(s.Used+s.Available) * 100
}

// bar draws the fill level of a space, with a mark where thinsnap refuses new snapshots.
func (v view) bar(s *admin.Space, columns int) string {
	capacity := s.Used + s.Available
	used := int(full(s)/100*float64(columns) + 0.5)
	mark := -1
	if s.MinFree > 0 && capacity > 0 {
		mark = min(int(float64(capacity-min(s.MinFree, capacity))/float64(capacity)*float64(columns)), columns-1)
	}
	var b strings.Builder
	for i := range columns {
		switch {
		case i == mark:
			b.WriteString(v.colour.red("┃"))
		case i < used:
			b.WriteString(v.colour.level(s.Level, "█"))
		default:
			b.WriteString(v.colour.dim("░"))
		}
	}
	return b.String()
}

func (v view) calls(w *watcher) [][]string {
	lines := [][]string{{"CALL", "PER SECOND", "ENDED", "FAILED", "MEAN"}}
	before := make(map[string]uint64)
	for _, total := range w.before {
		before[total.Method] = total.Ended
	}
	for _, total := range w.activity.Totals {
		rate := "-"
		if w.sinceBefore > 0 && total.Ended >= before[total.Method] {
			rate = strconv.FormatFloat(float64(total.Ended-before[total.Method])/w.sinceBefore.Seconds(), 'f', 1, 64)
		}
		failed := decimal(total.Failed)
		if total.Failed > 0 {
			failed = v.colour.red(failed)
		}
		lines = append(lines, []string{total.Method, rate, decimal(total.Ended), failed, mean(total)})
	}
	return lines
}

func mean(total admin.CallTotal) string {
	if total.Ended == 0 {
		return "-"
	}
	return brief(total.Seconds / float64(total.Ended))
}

// brief formats seconds with three digits.
func brief(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	for unit := time.Duration(1); ; unit *= 10 {
		if d < 1000*unit {
			return d.Round(unit).String()
		}
	}
}

func (v view) running(w *watcher, limit int) [][]string {
	lines := [][]string{{"RUNNING", "FOR", "KEY"}}
	for _, call := range w.activity.Running[:min(limit, len(w.activity.Running))] {
		lines = append(lines, []string{v.colour.blue(call.Method), since(w, call.StartedAt), v.key(call.Key)})
	}
	return v.more(lines, w.activity.RunningTotal)
}

// trash returns a table of removed snapshots whose volumes are not deleted yet.
func (v view) trash(w *watcher, limit int) [][]string {
	lines := [][]string{{"TRASH", "FOR", "KEY"}}
	for _, removed := range w.activity.Trash[:min(limit, len(w.activity.Trash))] {
		lines = append(lines, []string{"volume " + deviceID(removed.DeviceID), since(w, removed.Since), v.key(removed.Key)})
	}
	return v.more(lines, w.activity.TrashTotal)
}

// more adds a line with the number of omitted lines.
func (v view) more(lines [][]string, total uint64) [][]string {
	if listed := uint64(len(lines) - 1); listed < total {
		lines = append(lines, []string{v.colour.dim(fmt.Sprintf("%d more", total-listed))})
	}
	return lines
}

// since returns the time from at to the daemon's answer.
func since(w *watcher, at time.Time) string { return brief(max(w.at.Sub(at), 0).Seconds()) }

// largest returns a table of the snapshots that use the most space.
func (v view) largest(w *watcher, limit int) [][]string {
	used := func(s admin.Snapshot) uint64 {
		if s.Used == nil {
			return 0
		}
		return *s.Used
	}
	sorted := slices.Clone(w.snapshots)
	slices.SortStableFunc(sorted, func(a, b admin.Snapshot) int { return cmp.Compare(used(b), used(a)) })
	lines := [][]string{{"USED", "SHARED", "KIND", "BELONGS TO", "SNAPSHOT"}}
	for _, s := range sorted[:min(limit, len(sorted))] {
		owner := "-"
		if o, ok := w.owners[s.Key]; ok {
			owner = ownerText(&o)
		}
		lines = append(lines, []string{
			sizeIfKnown(s.Used), sizeIfKnown(s.Shared), v.colour.kind(s.Kind), owner, v.key(s.Key),
		})
	}
	return lines
}
