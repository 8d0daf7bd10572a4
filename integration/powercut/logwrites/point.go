package logwrites

import "math/rand/v2"

// Point is a state that the device could have been in when the power went: all
// entries before Settled, and of those that follow, the ones in Some.
type Point struct {
	// Settled entries are on stable storage.
	Settled int
	// Some has the numbers of entries after them, in order.
	Some []int
	// End is the number of the first entry that is later than the power cut: no
	// mark before it may be forgotten.
	End int
}

// Draw draws a point that lies behind the entries before first. Between two
// flushes every subset of what was written may have reached stable storage; what
// was written with FUA has, once it was complete. Half of the points lie right
// after a mark, which is when what the mark promises is easiest to lose.
func (l *Log) Draw(random *rand.Rand, first int) Point {
	groups := l.groups(first)
	group := groups[random.IntN(len(groups))]
	end := group[0] + random.IntN(group[1]-group[0]+1)
	if marks := l.marks(first); len(marks) > 0 && random.IntN(2) == 0 {
		end = marks[random.IntN(len(marks))] + 1
	}
	return l.At(random, first, end)
}

// At draws a point right before the entry with the number end. It lies behind the entries before first.
func (l *Log) At(random *rand.Rand, first, end int) Point {
	p := Point{Settled: first, End: end}
	for i := first; i < end; i++ {
		if l.Entries[i].Flags&Flush != 0 {
			p.Settled = i + 1
		}
	}
	// Mostly some are lost; sometimes all, or none.
	share := []float64{0, 0.2, 0.5, 0.8, 1}[random.IntN(5)]
	for i := p.Settled; i < p.End; i++ {
		if e := l.Entries[i]; e.Length > 0 && (!e.cached() || random.Float64() < share) {
			p.Some = append(p.Some, i)
		}
	}
	return p
}

// marks returns the numbers of the marks from first on.
func (l *Log) marks(first int) []int {
	var all []int
	for i := first; i < len(l.Entries); i++ {
		if l.Entries[i].Flags&mark != 0 {
			all = append(all, i)
		}
	}
	return all
}

// groups returns the runs of entries between one flush and the next, as the
// number of the first and the one after the last. None is empty.
func (l *Log) groups(first int) [][2]int {
	var all [][2]int
	start := first
	for i := first; i < len(l.Entries); i++ {
		if l.Entries[i].Flags&Flush == 0 {
			continue
		}
		if i > start {
			all = append(all, [2]int{start, i})
		}
		start = i + 1
	}
	if start < len(l.Entries) || len(all) == 0 {
		all = append(all, [2]int{start, len(l.Entries)})
	}
	return all
}
