package main

import (
	"io"
	"os"
	"regexp"
	"strings"

	"golang.org/x/term"
)

// hasNames reports whether a column may be cut if the table is wider than the terminal.
func hasNames(heading string) bool {
	return heading == "KEY" || heading == "SNAPSHOT" || heading == "BELONGS TO"
}

// number matches a count, a size, a rate or a duration, or the dash for an unknown one.
var number = regexp.MustCompile(`^([0-9.]+([KMGTP]?i?B|%|ns|µs|ms|s|m[0-9.]*s|h[0-9m.]*s)?|-)$`)

// minName is the minimum width of a cut column.
const minName = 16

// printTable writes lines of cells in aligned columns. The first line is the heading. On a
// terminal, names are cut to fit its width, unless whole is set by --no-trunc.
func (a *app) printTable(lines [][]string, whole bool) error {
	columns := 0
	if out, ok := a.out.(*os.File); ok && a.terminal && !whole {
		columns, _, _ = term.GetSize(int(out.Fd())) // 0 if unknown: not cut
	}
	_, err := io.WriteString(a.out, strings.Join(align(a.colour, fit(lines, columns)), "\n")+"\n")
	return err
}

// align formats lines of cells, which may be coloured, as columns. Numbers are right-aligned.
func align(p palette, lines [][]string) []string {
	widths, numbers := columnWidths(lines), numberColumns(lines)
	aligned := make([]string, len(lines))
	for n, cells := range lines {
		var b strings.Builder
		for i, cell := range cells {
			room := strings.Repeat(" ", widths[i]-width(cell))
			switch {
			case numbers[i]:
				b.WriteString(room + cell)
			case i < len(cells)-1:
				b.WriteString(cell + room)
			default:
				b.WriteString(cell)
			}
			if i < len(cells)-1 {
				b.WriteString("  ")
			}
		}
		aligned[n] = b.String()
	}
	if len(aligned) > 0 {
		aligned[0] = p.bold(aligned[0])
	}
	return aligned
}

// fit cuts the names in lines of cells, the widest column first, until the lines have the given
// width or all names have minName; 0 is no limit. It changes the lines.
func fit(lines [][]string, columns int) [][]string {
	if columns <= 0 || len(lines) == 0 {
		return lines
	}
	widths := columnWidths(lines)
	total := -2
	for _, w := range widths {
		total += w + 2
	}
	for ; total > columns; total-- {
		longest := -1
		for i, heading := range lines[0] {
			if hasNames(heading) && widths[i] > minName && (longest < 0 || widths[i] > widths[longest]) {
				longest = i
			}
		}
		if longest < 0 {
			break
		}
		widths[longest]--
	}
	for _, cells := range lines {
		for i := range cells {
			cells[i] = clip(cells[i], widths[i])
		}
	}
	return lines
}

func columnWidths(lines [][]string) []int {
	var widths []int
	for _, cells := range lines {
		for i, cell := range cells {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], width(cell))
		}
	}
	return widths
}

// numberColumns reports, for each column, whether all cells below the heading are numbers.
func numberColumns(lines [][]string) (numbers []bool) {
	for n, cells := range lines {
		for i, cell := range cells {
			if i == len(numbers) {
				numbers = append(numbers, len(lines) > 1)
			}
			numbers[i] = numbers[i] && (n == 0 || number.MatchString(codes.ReplaceAllString(cell, "")))
		}
	}
	return numbers
}
