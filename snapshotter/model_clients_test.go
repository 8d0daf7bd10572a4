package snapshotter_test

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/snapshotter"
)

// subject is the snapshotter that clients use.
type subject interface {
	snapshots.Snapshotter
	snapshots.Cleaner
	Freeze(ctx context.Context, key string) (*snapshotter.Frozen, error)
	IssueFork(ctx context.Context, key string) (token string, err error)
}

// disk reads and writes volumes without caches.
type disk interface {
	Write(dev, content string) error
	Read(dev string) (string, error)
}

// history has the operations of clients and their answers.
type history struct {
	clock atomic.Int64
	mu    sync.Mutex
	ops   []porcupine.Operation
	// tokens counts the unique values that were used: contents, labels and tags.
	tokens atomic.Int64
}

func (h *history) token() string { return fmt.Sprint("t", h.tokens.Add(1)) }

// do runs one operation and records it.
func (h *history) do(client int, in request, run func() (string, error)) error {
	began := h.clock.Add(1)
	seen, err := run()
	ended := h.clock.Add(1)
	out := answer{class(err), seen}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: in, Call: began, Output: out, Return: ended})
	if slices.Contains([]string{"Prepare", "View", "Fork"}, in.op) && out.class == failed {
		// A failed or late Prepare removes its record again, and other clients may have seen it meanwhile.
		// If opUndone takes effect before opSeen, no client saw the record.
		in.failed = in.op
		in.tag = int(h.tokens.Add(1))
		for _, op := range []string{opSeen, opUndone} {
			in.op = op
			h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: in, Call: began, Output: answer{}, Return: ended})
		}
	}
	return err
}

// check compares the history with the model.
func (h *history) check(t *testing.T) {
	t.Helper()
	result := porcupine.CheckOperationsTimeout(containerdRules(), h.ops, 20*time.Second)
	if result == porcupine.Ok {
		return
	}
	slices.SortFunc(h.ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	var text strings.Builder
	for _, op := range h.ops {
		fmt.Fprintf(&text, "%4d to %4d  client %d  %+v  ->  %q\n", op.Call, op.Return, op.ClientId, op.Input, op.Output)
	}
	require.Failf(t, "no order of the operations explains their results", "%v\n%s", result, text.String())
}

// client does random operations. It shares its keys with the others except for two of its own: only there
// it knows the content of a volume, and writes to it.
type client struct {
	subject
	*history
	disk disk
	id   int
	r    *rand.Rand
	keys []string
	// impatient cancels some operations.
	impatient bool
}

func (c *client) key() string { return c.keys[c.r.IntN(len(c.keys))] }

func (c *client) parent() string {
	if c.r.IntN(4) == 0 {
		return ""
	}
	return c.key()
}

func (c *client) step(ctx context.Context) {
	if c.impatient && c.r.IntN(6) == 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(c.r.IntN(500))*time.Microsecond)
		defer cancel()
	}
	key := c.key()
	switch c.r.IntN(22) {
	case 0, 1, 2:
		_ = c.prepare(ctx, request{op: "Prepare", key: key, other: c.parent()})
	case 3, 4:
		_ = c.prepare(ctx, request{op: "View", key: key, other: c.parent()})
	case 5, 6, 7:
		_ = c.commit(ctx, key, c.key())
	case 8, 9, 10:
		c.remove(ctx, key)
	case 11, 12, 13:
		own := fmt.Sprint("layer of ", c.id)
		if c.prepare(ctx, request{op: "Prepare", key: own, other: c.parent(), write: c.token()}) != nil {
			return
		}
		if c.commit(ctx, key, own) != nil {
			c.remove(context.WithoutCancel(ctx), own)
		}
	case 14:
		own := fmt.Sprint("view of ", c.id)
		if c.prepare(ctx, request{op: "View", key: own, other: key}) == nil {
			c.remove(context.WithoutCancel(ctx), own)
		}
	case 15:
		_ = c.do(c.id, request{op: "Mounts", key: key}, func() (string, error) {
			_, err := c.Mounts(ctx, key)
			return "", err
		})
	case 16:
		_ = c.do(c.id, request{op: "Usage", key: key}, func() (string, error) {
			_, err := c.Usage(ctx, key)
			return "", err
		})
	case 17:
		_ = c.do(c.id, request{op: "Stat", key: key}, func() (string, error) {
			return record(c.Stat(ctx, key))
		})
	case 18:
		_ = c.do(c.id, request{op: "Freeze", key: key}, func() (string, error) {
			frozen, err := c.Freeze(ctx, key)
			if err != nil {
				return "", err
			}
			defer frozen.Release(ctx)
			content, err := c.disk.Read(frozen.Path)
			return "content " + content, err
		})
	case 19:
		if own := fmt.Sprint("fork of ", c.id); c.fork(ctx, own, key) == nil && c.commit(ctx, key, own) != nil {
			c.remove(context.WithoutCancel(ctx), own)
		}
	case 20:
		label := c.token()
		_ = c.do(c.id, request{op: "Update", key: key, label: label}, func() (string, error) {
			return record(c.Update(ctx, snapshots.Info{Name: key, Labels: map[string]string{"l": label}}, "labels.l"))
		})
	default:
		if c.r.IntN(3) == 0 {
			_ = c.do(c.id, request{op: "Cleanup"}, func() (string, error) { return "", c.Cleanup(ctx) })
			return
		}
		_ = c.walk(ctx)
	}
}

// prepare creates a snapshot. With a key of the client's own it also reads the content, and may write to
// it.
func (c *client) prepare(ctx context.Context, in request) error {
	in.label = c.token()
	create := c.Prepare
	if in.op == "View" {
		create = c.View
	}
	return c.do(c.id, in, func() (string, error) {
		mounts, err := create(ctx, in.key, in.other, labels("l", in.label))
		if err != nil || slices.Contains(c.keys, in.key) {
			return "", err
		}
		return c.content(mounts, in.write)
	})
}

// fork makes a fork of a snapshot that can be forked.
func (c *client) fork(ctx context.Context, key, source string) error {
	info, err := c.Stat(ctx, source)
	if err != nil {
		return err
	}
	token, err := c.IssueFork(ctx, source)
	if err != nil {
		return err
	}
	in := request{op: "Fork", key: key, other: source, label: c.token()}
	return c.do(c.id, in, func() (string, error) {
		mounts, err := c.Prepare(ctx, in.key, info.Parent, labels("l", in.label), from(token))
		if err != nil {
			return "", err
		}
		return c.content(mounts, "")
	})
}

func (c *client) content(mounts []mount.Mount, write string) (string, error) {
	was, err := c.disk.Read(mounts[0].Source)
	if err == nil && write != "" {
		err = c.disk.Write(mounts[0].Source, write)
	}
	return "content " + was, err
}

func (c *client) commit(ctx context.Context, name, key string) error {
	label := c.token()
	return c.do(c.id, request{op: "Commit", key: key, other: name, label: label}, func() (string, error) {
		return "", c.Commit(ctx, name, key, labels("l", label))
	})
}

func (c *client) remove(ctx context.Context, key string) {
	_ = c.do(c.id, request{op: "Remove", key: key}, func() (string, error) { return "", c.Remove(ctx, key) })
}

func (c *client) walk(ctx context.Context) error {
	return c.do(c.id, request{op: "Walk"}, func() (string, error) {
		var all []string
		err := c.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			one, _ := record(info, nil)
			all = append(all, one)
			return nil
		})
		if err != nil {
			return "", err
		}
		return strings.Join(all, "\n"), nil
	})
}

func record(info snapshots.Info, err error) (string, error) {
	if err != nil {
		return "", err
	}
	return entry{kind: info.Kind, parent: info.Parent, label: info.Labels["l"]}.record(info.Name), nil
}

// run has several clients do random operations concurrently.
func (h *history) run(t *testing.T, sn subject, disk disk, seed uint64, impatient bool) {
	t.Helper()
	keys := []string{"k0", "k1", "k2", "k3", "k4"}[:2+seed%4]
	var all sync.WaitGroup
	for id := range 6 {
		c := &client{sn, h, disk, id, rand.New(rand.NewPCG(seed, uint64(id))), keys, impatient}
		all.Go(func() {
			for range 8 {
				c.step(t.Context())
			}
		})
	}
	all.Wait()
}

// end checks the content of every layer, removes everything, and compares the history with the model.
func (h *history) end(t *testing.T, sn subject, disk disk) {
	t.Helper()
	c := &client{subject: sn, history: h, disk: disk, id: 6}
	require.NoError(t, c.walk(t.Context()))
	for left := true; left; {
		var infos []snapshots.Info
		require.NoError(t, sn.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
			infos = append(infos, info)
			return nil
		}))
		for _, info := range infos {
			if info.Kind == snapshots.KindCommitted {
				require.NoError(t, c.prepare(t.Context(), request{op: "View", key: "last look", other: info.Name}))
				c.remove(t.Context(), "last look")
			}
			c.remove(t.Context(), info.Name)
		}
		left = len(infos) > 0
	}
	h.check(t)
}
