package logwrites

import "math/rand/v2"

// Point is a possible state of the device after a power cut: it has all entries before Settled, and those in Some.
type Point struct {
	// Settled is the number of entries on stable storage.
	Settled int
	// Some has the numbers of later entries, in order.
	Some []int
	// End is the number of the first entry after the power cut: all marks before it must hold.
	End int
}

// Draw draws a random point after the entries before first. Between two flushes any subset of the writes may have
// reached stable storage, but each complete write with FUA has reached it. Half of the points are right after a mark,
// where its promise is most easily broken.
func (l *Log) Draw(random *rand.Rand, first int) Point {
	groups := l.groups(first)
	group := groups[random.IntN(len(groups))]
	end := group[0] + random.IntN(group[1]-group[0]+1)
	if marks := l.marks(first); len(marks) > 0 && random.IntN(2) == 0 {
		end = marks[random.IntN(len(marks))] + 1
	}
	return l.At(random, first, end)
}

// At draws a random point right before the entry with the number end, and after the entries before first.
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

// groups returns the ranges of entries between one flush and the next, as the number of the first entry and the number
// after the last. No range is empty.
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
