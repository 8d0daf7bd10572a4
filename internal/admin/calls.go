package admin

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// shown is how many running calls, and how many removed snapshots, one answer has at most.
	shown = 100
	// recorded is how many running calls are told apart at most; the others are only counted.
	recorded = 1024
	// remembered is how many calls are remembered after they have ended.
	remembered = 50
	// keyShown is how many bytes of a key are kept of a call: room for two digests and more.
	keyShown = 256
)

// calls keeps account of the calls of containerd. Its size is bounded, whatever clients do.
type calls struct {
	mu      sync.Mutex
	next    uint64
	total   uint64
	running map[uint64]RunningCall
	recent  []EndedCall // a ring
	at      int         // where in the ring the next one goes
	totals  map[string]*CallTotal
}

func newCalls() *calls {
	return &calls{running: make(map[uint64]RunningCall), totals: make(map[string]*CallTotal)}
}

// begin notes a call, and returns what is to be called when it has ended.
func (c *calls) begin(method, key string) (end func(outcome string) time.Duration) {
	call := RunningCall{Method: method, Key: cut(key), StartedAt: time.Now()}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total++
	c.next++
	id := c.next
	if len(c.running) < recorded {
		c.running[id] = call
	}
	return func(outcome string) time.Duration {
		took := time.Since(call.StartedAt)
		c.end(id, EndedCall{RunningCall: call, Seconds: took.Seconds(), Outcome: outcome})
		return took
	}
}

func (c *calls) end(id uint64, call EndedCall) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total--
	delete(c.running, id)
	total := c.totals[call.Method]
	if total == nil {
		total = &CallTotal{Method: call.Method}
		c.totals[call.Method] = total
	}
	total.Ended++
	total.Seconds += call.Seconds
	failed := hasFailed(call.Outcome)
	if failed {
		total.Failed++
	}
	switch {
	case looksOnly(call.Method) && !failed:
	case len(c.recent) < remembered:
		c.recent = append(c.recent, call)
	default:
		c.recent[c.at] = call
		c.at = (c.at + 1) % remembered
	}
}

// report fills in the calls of an answer.
func (c *calls) report(a *Activity) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a.RunningTotal = c.total
	a.Running = make([]RunningCall, 0, len(c.running))
	for _, call := range c.running {
		a.Running = append(a.Running, call)
	}
	slices.SortFunc(a.Running, func(x, y RunningCall) int { return x.StartedAt.Compare(y.StartedAt) })
	a.Running = a.Running[:min(len(a.Running), shown)]
	a.Recent = slices.Concat(c.recent[c.at:], c.recent[:c.at])
	slices.Reverse(a.Recent)
	if a.Recent == nil {
		a.Recent = []EndedCall{} // an empty list in JSON, not null
	}
	a.Totals = make([]CallTotal, 0, len(c.totals))
	for _, total := range c.totals {
		a.Totals = append(a.Totals, *total)
	}
	slices.SortFunc(a.Totals, func(x, y CallTotal) int { return cmp.Compare(x.Method, y.Method) })
}

// looksOnly tells whether a method changes nothing: containerd calls these all the time.
func looksOnly(method string) bool {
	return slices.Contains([]string{"Stat", "List", "Usage", "Mounts"}, method)
}

// hasFailed tells whether an outcome is one that nobody wants; that something is not there is often what a client asks.
func hasFailed(outcome string) bool {
	return !slices.Contains([]string{"OK", "NotFound", "AlreadyExists", "Canceled"}, outcome)
}

// cut shortens a key that is much longer than those that are meant well. It copies: a part of a string keeps it all.
func cut(key string) string {
	if len(key) <= keyShown {
		return key
	}
	return strings.ToValidUTF8(key[:keyShown], "") + "…"
}
