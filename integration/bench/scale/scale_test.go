// Package scale measures thinsnap with many snapshots in its store.
//
//	go test -run '^$' -bench Scale -benchtime 1x ./integration/bench/scale
//
// The snapshotter, the store on a disk and the gRPC server are real, in a process of their own. The pool is a fake that
// takes no time, so that only thinsnap is measured, and no device-mapper is needed. THINSNAP_BENCH_JSON names a file
// for the results.
package scale

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/dmtest/bulk"
)

const (
	// starts is the number of starts with the store in the page cache, and of those without.
	starts = 5
	// mixed is the number of operations before the second measurement of memory.
	mixed = 1000
	// Latencies are measured in short rounds that alternate between the daemons, so that other load affects all of them.
	rounds, perRound = 20, 50
	// Throughput is measured in rounds, too.
	commitRounds = 3
)

const coldStart = "start with the store on disk"

// load has the numbers of workers, and of snapshots that they make in total in each round.
var load = []struct{ workers, operations int }{{1, 300}, {8, 1200}, {64, 3200}}

// subject is a daemon under measurement.
type subject struct {
	*daemon
	result
	newKeys   atomic.Int64 // used so far
	latencies map[string][]time.Duration
}

func BenchmarkScale(b *testing.B) {
	for b.Loop() {
		var subjects []*subject
		for _, n := range []int{1_000, 10_000, 100_000} {
			s := &subject{result: result{Snapshots: n}, latencies: make(map[string][]time.Duration)}
			s.begin(b)
			s.work(b)
			subjects = append(subjects, s)
		}
		measureLatencies(b, subjects)
		measureThroughput(b, subjects)
		var results []*result
		for _, s := range subjects {
			s.stop(b)
			results = append(results, &s.result)
		}
		report(b, results)
	}
}

// begin starts daemons, and leaves the last one running.
func (s *subject) begin(b *testing.B) {
	b.Helper()
	began := time.Now()
	root := makeRoot(b, s.Snapshots)
	s.add("store made", "s", time.Since(began).Seconds())
	info, err := os.Stat(storePath(root))
	require.NoError(b, err)
	s.add("store", "MiB", float64(info.Size())/(1<<20))

	took := func(name string, before func()) {
		var all []time.Duration
		for range starts {
			if s.daemon != nil {
				s.stop(b)
			}
			before()
			s.daemon = start(b, root, bulk.Key(s.Snapshots/2))
			all = append(all, s.took)
		}
		s.add(name+", median", "ms", milliseconds(median(all)))
		s.add(name+", slowest", "ms", milliseconds(quantile(all, 1)))
	}
	took(coldStart, func() { evict(b, root) })
	took("start with the store in the page cache", func() {})
	s.addMemory(b, "after the start")
	c := s.counts(b)
	s.add("heap after the start", "MiB", float64(c.Heap)/(1<<20))
	s.add("transactions after the start", "", float64(c.Store.Transactions))
	s.add("reads after the start", "", float64(c.Store.Reads))
}

func (s *subject) addMemory(b *testing.B, when string) {
	b.Helper()
	m := s.memory(b)
	s.add("RSS "+when, "MiB", mebibytes(m.RSS))
	s.add("of it anonymous, "+when, "MiB", mebibytes(m.Anon))
	s.add("of it mapped files, "+when, "MiB", mebibytes(m.File))
	s.add("peak RSS "+when, "MiB", mebibytes(m.Peak))
}

// work runs a mixture of operations, lists all snapshots and calls Stat on each.
func (s *subject) work(b *testing.B) {
	b.Helper()
	done := 0
	for done < mixed {
		done += s.mixture(b)
	}
	s.cleanUp(b)

	began := time.Now()
	listed := 0
	require.NoError(b, s.Walk(b.Context(), func(context.Context, snapshots.Info) error {
		listed++
		return nil
	}))
	s.add("list of all", "ms", milliseconds(time.Since(began)))
	require.Equal(b, s.Snapshots, listed)

	began = time.Now()
	s.inParallel(b, 8, s.Snapshots, func(i int) error {
		_, err := s.Stat(b.Context(), bulk.Key(i))
		return err
	})
	s.add("Stat of all, 8 at a time", "ms", milliseconds(time.Since(began)))
	s.addMemory(b, "after work")
	s.add("heap after work", "MiB", float64(s.counts(b).Heap)/(1<<20))
}

// mixture takes a layer from its Prepare to its removal, and returns the number of operations.
func (s *subject) mixture(b *testing.B) int {
	b.Helper()
	ctx, key := b.Context(), s.newKey()
	name, view := key+"-committed", key+"-view"
	operations := []func() error{
		func() error { return s.prepare(ctx, key) },
		func() error { _, err := s.Stat(ctx, key); return err },
		func() error { _, err := s.Mounts(ctx, key); return err },
		func() error { _, err := s.Usage(ctx, key); return err },
		func() error {
			_, err := s.Update(ctx, snapshots.Info{Name: key, Labels: map[string]string{"a": "b"}}, "labels.a")
			return err
		},
		func() error { return s.Commit(ctx, name, key) },
		func() error { _, err := s.View(ctx, view, name); return err },
		func() error { return s.Remove(ctx, view) },
		func() error { _, err := s.Usage(ctx, name); return err },
		func() error { return s.Remove(ctx, name) },
	}
	for _, operation := range operations {
		require.NoError(b, operation())
	}
	return len(operations)
}

func (s *subject) newKey() string {
	return fmt.Sprintf("default/%d/new", s.Snapshots+int(s.newKeys.Add(1)))
}

// prepare makes a container's snapshot of one of the images.
func (s *subject) prepare(ctx context.Context, key string) error {
	image := rand.IntN(s.Snapshots / bulk.Image)
	_, err := s.Prepare(ctx, key, bulk.TopLayer(image), snapshots.WithLabels(bulk.Labels(image, time.Now())))
	return err
}

// inParallel calls do with the numbers from 0 to n-1.
func (s *subject) inParallel(b *testing.B, workers, n int, do func(i int) error) {
	b.Helper()
	var wg sync.WaitGroup
	var next atomic.Int64
	for range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := do(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// measured are the operations whose latency is measured, in the order of a container's life.
var measured = []string{"Prepare", "Mounts", "Stat", "Remove"}

func measureLatencies(b *testing.B, subjects []*subject) {
	b.Helper()
	for range rounds {
		for _, s := range subjects {
			s.round(b)
		}
	}
	for _, s := range subjects {
		for _, name := range measured {
			s.add(name+", median", "ms", milliseconds(median(s.latencies[name])))
			s.add(name+", 95%", "ms", milliseconds(quantile(s.latencies[name], 0.95)))
		}
	}
}

// round takes samples of each operation, one call at a time.
func (s *subject) round(b *testing.B) {
	b.Helper()
	ctx := b.Context()
	keys := make([]string, perRound)
	for i := range keys {
		keys[i] = s.newKey()
	}
	for _, name := range measured {
		for _, key := range keys {
			began := time.Now()
			var err error
			switch name {
			case "Prepare":
				err = s.prepare(ctx, key)
			case "Mounts":
				_, err = s.Mounts(ctx, key)
			case "Stat":
				_, err = s.Stat(ctx, bulk.Key(rand.IntN(s.Snapshots)))
			case "Remove":
				err = s.Remove(ctx, key)
			}
			s.latencies[name] = append(s.latencies[name], time.Since(began))
			require.NoError(b, err)
		}
	}
	s.cleanUp(b)
}

// measureThroughput measures group commits: the rate of Prepares, and their number of transactions.
func measureThroughput(b *testing.B, subjects []*subject) {
	b.Helper()
	for _, l := range load {
		took := make(map[*subject][]time.Duration)
		transactions := make(map[*subject]uint64)
		for range commitRounds {
			for _, s := range subjects {
				keys := make([]string, l.operations)
				for i := range keys {
					keys[i] = s.newKey()
				}
				before := s.counts(b).Store.Transactions
				began := time.Now()
				s.inParallel(b, l.workers, len(keys), func(i int) error { return s.prepare(b.Context(), keys[i]) })
				took[s] = append(took[s], time.Since(began))
				transactions[s] += s.counts(b).Store.Transactions - before
				s.inParallel(b, 8, len(keys), func(i int) error { return s.Remove(b.Context(), keys[i]) })
				s.cleanUp(b)
			}
		}
		for _, s := range subjects {
			name := fmt.Sprintf("Prepare by %d workers", l.workers)
			s.add(name, "1/s", float64(l.operations)/median(took[s]).Seconds())
			s.add(name+", transactions", "1/op", float64(transactions[s])/float64(l.operations*commitRounds))
		}
	}
}

func report(b *testing.B, results []*result) {
	b.Helper()
	fmt.Println("\nThe kernel is faked: the pool takes no time. Store, snapshotter and gRPC server are real.")
	require.NoError(b, printTable(os.Stdout, results))
	few, many := results[0], results[len(results)-1]
	const prepare = "Prepare, median"
	for _, target := range []struct {
		what         string
		value, limit float64
		unit         string
	}{
		{"start, slowest", many.get(coldStart + ", slowest"), 1000, "ms"},
		{"RSS after the start", many.get("RSS after the start"), 64, "MiB"},
		{prepare + ", ratio", many.get(prepare) / few.get(prepare), 1.2, ""},
	} {
		verdict := "met"
		if target.value > target.limit {
			verdict = "missed"
		}
		fmt.Printf("with %d snapshots, %s: %s %s, at most %s: %s\n",
			many.Snapshots, target.what, number(target.value), target.unit, number(target.limit), verdict)
	}
	require.NoError(b, writeJSON(results))
	b.ReportMetric(0, "ns/op")
}
