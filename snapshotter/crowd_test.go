package snapshotter_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// TestOneKeyFromManyConnections: 64 clients make the same call at the same time, each on its own
// connection. One succeeds, and the others get the expected class.
func TestOneKeyFromManyConnections(t *testing.T) {
	s := serve(t, newBench(t, fakeConfig()))
	s.layer(t, "layer", "", "content")
	const clients = 64
	all := make([]snapshots.Snapshotter, clients)
	for i := range all {
		all[i], _ = s.client(t)
	}
	for _, step := range []struct {
		name    string
		classes []string
		run     func(sn snapshots.Snapshotter, i int) error
	}{
		{"Prepare", []string{"already exists"}, func(sn snapshots.Snapshotter, _ int) error {
			_, err := sn.Prepare(t.Context(), "a", "layer")
			return err
		}},
		{"Commit", []string{"already exists", "not found"}, func(sn snapshots.Snapshotter, _ int) error {
			return sn.Commit(t.Context(), "b", "a")
		}},
		{"View", []string{"already exists"}, func(sn snapshots.Snapshotter, _ int) error {
			_, err := sn.View(t.Context(), "a", "b")
			return err
		}},
		{"Remove", []string{"not found"}, func(sn snapshots.Snapshotter, _ int) error { return sn.Remove(t.Context(), "a") }},
		{"Prepare or View", []string{"already exists"}, func(sn snapshots.Snapshotter, i int) (err error) {
			if i%2 == 0 {
				_, err = sn.Prepare(t.Context(), "a", "b")
			} else {
				_, err = sn.View(t.Context(), "a", "b")
			}
			return err
		}},
		{"Remove again", []string{"not found"}, func(sn snapshots.Snapshotter, _ int) error { return sn.Remove(t.Context(), "a") }},
		{"Prepare again", []string{"already exists"}, func(sn snapshots.Snapshotter, _ int) error {
			_, err := sn.Prepare(t.Context(), "a", "b")
			return err
		}},
		{"Commit under many names", []string{"not found"}, func(sn snapshots.Snapshotter, i int) error {
			return sn.Commit(t.Context(), fmt.Sprint("c", i), "a")
		}},
	} {
		var won atomic.Int32
		var wait sync.WaitGroup
		for i, sn := range all {
			wait.Go(func() {
				err := step.run(sn, i)
				if err == nil {
					won.Add(1)
				} else if got := class(err); got != step.classes[0] && got != step.classes[len(step.classes)-1] {
					t.Errorf("%s: %v", step.name, err)
				}
			})
		}
		wait.Wait()
		require.EqualValues(t, 1, won.Load(), step.name)
	}
	require.Len(t, names(t, s), 3)
	s.requireNoLeftovers(t)
}

// breakable keeps the connections of a client, to close them abruptly.
type breakable struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (b *breakable) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(address, "unix://"))
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conns = append(b.conns, conn)
	return conn, err
}

func (b *breakable) breakAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, conn := range b.conns {
		_ = conn.Close()
	}
}

// TestClientGoneInTheMiddle ends a client's connection during each call of the pool in each of its
// operations.
func TestClientGoneInTheMiddle(t *testing.T) {
	operations := map[string]struct {
		before func(t *testing.T, b *bench)
		run    func(sn snapshots.Snapshotter) error
		after  func(t *testing.T, b *bench)
	}{
		"Prepare": {layerBefore, func(sn snapshots.Snapshotter) error {
			_, err := sn.Prepare(t.Context(), "a", "layer")
			return err
		}, nil},
		"View": {layerBefore, func(sn snapshots.Snapshotter) error {
			_, err := sn.View(t.Context(), "a", "layer")
			return err
		}, nil},
		"Commit": {openBefore, func(sn snapshots.Snapshotter) error { return sn.Commit(t.Context(), "b", "a") }, closeAll},
	}
	for name, op := range operations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := fakeConfig()
			config.Spares = 0
			s := serve(t, newBench(t, config))
			for n, reached := int32(1), true; reached; n++ {
				op.before(t, s.bench)
				require.NoError(t, s.Cleanup(t.Context()))
				before := s.records(t)
				var client breakable
				sn, conn := s.client(t, grpc.WithContextDialer(client.dial))
				var calls atomic.Int32
				at, goOn := make(chan struct{}), make(chan struct{})
				s.pool.SetFault(func(string, thin.ID) error {
					if calls.Add(1) == n {
						close(at)
						<-goOn
					}
					return nil
				})
				ended := make(chan error, 1)
				go func() { ended <- op.run(sn) }()
				select {
				case <-at:
					// It may be a call of the reaper, before the client dials.
					for gone := false; !gone; {
						client.breakAll()
						select {
						case err := <-ended:
							t.Log(err)
							gone = true
						case <-time.After(time.Millisecond):
						}
					}
				case err := <-ended:
					require.NoError(t, err)
					reached = false
				}
				close(goOn)
				require.NoError(t, conn.Close())
				require.Eventually(t, func() bool { return s.running.n.Load() == 0 }, 10*time.Second, time.Millisecond)
				s.pool.SetFault(func(string, thin.ID) error { return nil })
				if before == s.records(t) {
					again, _ := s.client(t)
					require.NoError(t, op.run(again))
				}
				if op.after != nil {
					op.after(t, s.bench)
				}
				s.removeAll(t)
				s.requireNoLeftovers(t)
			}
		})
	}
}

// TestClientThatDoesNotRead: a client that requests lists and does not read them does not delay others.
func TestClientThatDoesNotRead(t *testing.T) {
	s := serve(t, newBench(t, fakeConfig()))
	s.layer(t, "layer", "", "content")
	sn, _ := s.client(t)
	// If the client does not read, gRPC accepts one message of 100 snapshots from the server.
	const views = 150
	var all errgroup.Group
	for i := range views {
		all.Go(func() error {
			_, err := sn.View(t.Context(), fmt.Sprint("view-", i), "layer", snapshots.WithLabels(manyLabels(1, 4096)))
			return err
		})
	}
	require.NoError(t, all.Wait())
	var slow breakable
	const window = 64 << 10 // a fixed window: gRPC would enlarge it
	_, conn := s.client(t, grpc.WithContextDialer(slow.dial), grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window))
	const lists = 50
	for range lists {
		_, err := snapshotsapi.NewSnapshotsClient(conn).List(t.Context(), &snapshotsapi.ListSnapshotsRequest{})
		require.NoError(t, err)
	}
	// Only the last message is left to be sent.
	require.Eventually(t, func() bool { return s.walked.Load() == lists }, time.Minute, time.Millisecond)

	require.Len(t, names(t, sn), views+1)
	for i := range views {
		all.Go(func() error { return sn.Remove(t.Context(), fmt.Sprint("view-", i)) })
	}
	require.NoError(t, all.Wait())
	require.NoError(t, s.Cleanup(t.Context()))
	require.EqualValues(t, lists, s.running.n.Load())
	slow.breakAll()
	require.Eventually(t, func() bool { return s.running.n.Load() == 0 }, 10*time.Second, time.Millisecond)
	s.requireNoLeftovers(t)
}
