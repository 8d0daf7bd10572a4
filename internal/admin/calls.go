package admin

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// maxListed limits the running calls, and the removed snapshots, in an answer.
	maxListed = 100
	// maxRunning limits the running calls that are kept with details. All are counted.
	maxRunning = 1024
	// maxRecent limits the ended calls that are kept.
	maxRecent = 50
	// maxKeyBytes limits the kept part of a key. Two digests fit into it.
	maxKeyBytes = 256
)

// calls records the calls of clients in bounded memory.
type calls struct {
	mu      sync.Mutex
	next    uint64
	total   uint64
	running map[uint64]RunningCall
	recent  []EndedCall // a ring
	at      int         // the ring's index of the next call
	totals  map[string]*CallTotal
}

func newCalls() *calls {
	return &calls{running: make(map[uint64]RunningCall), totals: make(map[string]*CallTotal)}
}

// begin records the start of a call. The caller must call end when the call has ended.
func (c *calls) begin(client, method, key string) (end func(outcome string) time.Duration) {
	call := RunningCall{Client: client, Method: method, Key: shorten(key), StartedAt: time.Now()}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total++
	c.next++
	id := c.next
	if len(c.running) < maxRunning {
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
	case readsOnly(call.Method) && !failed:
	case len(c.recent) < maxRecent:
		c.recent = append(c.recent, call)
	default:
		c.recent[c.at] = call
		c.at = (c.at + 1) % maxRecent
	}
}

func (c *calls) report(a *Activity) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a.RunningTotal = c.total
	a.Running = make([]RunningCall, 0, len(c.running))
	for _, call := range c.running {
		a.Running = append(a.Running, call)
	}
	slices.SortFunc(a.Running, func(x, y RunningCall) int { return x.StartedAt.Compare(y.StartedAt) })
	a.Running = a.Running[:min(len(a.Running), maxListed)]
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

// readsOnly returns true for the methods that change nothing, which containerd calls all the time.
// It calls Apply once for each layer that any snapshotter unpacks.
func readsOnly(method string) bool {
	return slices.Contains([]string{"Stat", "List", "Usage", "Mounts", "Apply"}, method)
}

// hasFailed returns true for the outcomes that count as failures. NotFound does not, because
// clients probe for snapshots, and Unimplemented does not, because containerd then asks the next
// differ.
func hasFailed(outcome string) bool {
	return !slices.Contains([]string{"OK", "NotFound", "AlreadyExists", "Canceled", "Unimplemented"}, outcome)
}

// shorten cuts an overlong key. It copies, because a substring would keep the whole key in memory.
func shorten(key string) string {
	if len(key) <= maxKeyBytes {
		return key
	}
	return strings.ToValidUTF8(key[:maxKeyBytes], "") + "…"
}
