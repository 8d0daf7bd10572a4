package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	snapshotters "github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"

	"github.com/thinsnap/thinsnap/integration/powercut/content"
	"github.com/thinsnap/thinsnap/integration/powercut/model"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// mostLayers and mostActive limit the numbers of snapshots of a kind.
const (
	mostLayers = 12
	mostActive = 4
)

// work runs random operations one after another.
type work struct {
	sn     snapshotters.Snapshotter
	random *rand.Rand
	out    *journal
	model  *model.Model
	prefix string // of all keys
	count  int
}

// run works until an operation fails, or for the given number of operations; 0 means no limit.
func (w *work) run(ctx context.Context, operations int) error {
	limited := operations > 0
	acknowledged := w.out.acknowledged
	w.out.acknowledged = func(e model.Event) error {
		operations--
		return acknowledged(e)
	}
	if err := w.removeInterrupted(ctx); err != nil {
		return err
	}
	for !limited || operations > 0 {
		if err := w.step(ctx); err != nil {
			return err
		}
		for w.tooMany() || w.random.IntN(3) == 0 {
			gone, err := w.removeLeaf(ctx)
			if err != nil {
				return err
			}
			if !gone {
				break
			}
		}
	}
	return nil
}

func (w *work) tooMany() bool {
	return len(w.keys("Committed")) > mostLayers || len(w.keys("Active"))+len(w.keys("View")) > mostActive
}

// interruptible reports whether a snapshot is an unpack.
func interruptible(key string) bool { return snapshotter.IsUnpackKey(key) }

// removeInterrupted removes unpacks that the power cut has interrupted, as containerd does.
func (w *work) removeInterrupted(ctx context.Context) error {
	for _, key := range w.keys("Active") {
		if interruptible(key) {
			if err := w.remove(ctx, key); err != nil {
				return err
			}
		}
	}
	return nil
}

// step continues or makes an active snapshot, and mostly commits it.
func (w *work) step(ctx context.Context) error {
	w.count++
	key := w.pick("Active")
	if key == "" || w.random.IntN(3) > 0 {
		var err error
		if key, err = w.prepare(ctx); err != nil {
			return err
		}
	}
	if w.random.IntN(6) == 0 {
		view := &model.Event{Op: model.View, Key: fmt.Sprintf("view-%s%d", w.prefix, w.count), Parent: w.pick("Committed")}
		err := w.out.do(w.model, view, func() error { _, err := w.sn.View(ctx, view.Key, view.Parent); return err })
		if err != nil {
			return err
		}
	}
	digest, err := w.write(ctx, key)
	if err != nil {
		return err
	}
	if !interruptible(key) && w.random.IntN(5) == 0 {
		return nil // it stays active
	}
	commit := &model.Event{Op: model.Commit, Key: key, Name: fmt.Sprintf("layer-%s%d", w.prefix, w.count), Digest: digest}
	return w.out.do(w.model, commit, func() error { return w.sn.Commit(ctx, commit.Name, commit.Key) })
}

// prepare makes an active snapshot. Half of them are unpacks like containerd's, whose content only Commit syncs.
func (w *work) prepare(ctx context.Context) (string, error) {
	key := fmt.Sprintf("active-%s%d", w.prefix, w.count)
	if w.random.IntN(2) == 0 {
		unique := fmt.Sprintf("%s%d", w.prefix, w.count)
		key = "powercut/1/" + fmt.Sprintf(snapshotters.UnpackKeyFormat, unique, digest.FromString(unique))
	}
	e := &model.Event{Op: model.Prepare, Key: key, Parent: w.pick("Committed")}
	return e.Key, w.out.do(w.model, e, func() error { _, err := w.sn.Prepare(ctx, e.Key, e.Parent); return err })
}

// write changes the content of an active snapshot. Unmounting syncs it, unless its file system has no journal.
func (w *work) write(ctx context.Context, key string) (digest string, err error) {
	mounts, err := w.sn.Mounts(ctx, key)
	if err != nil {
		return "", fmt.Errorf("mounts of %s: %w", key, err)
	}
	e := &model.Event{Op: model.Write, Key: key}
	err = w.out.do(w.model, e, func() error {
		return mount.WithTempMount(ctx, mounts, func(dir string) (err error) {
			if err := content.Change(w.random, dir); err != nil {
				return err
			}
			digest, err = content.Digest(dir)
			if !interruptible(key) {
				e.Digest = digest
			}
			return err
		})
	})
	return digest, err
}

// removeLeaf removes a snapshot without children, if one exists.
func (w *work) removeLeaf(ctx context.Context) (bool, error) {
	parents := make(map[string]bool)
	for _, s := range w.model.Snapshots {
		parents[s.Parent] = true
	}
	leaves := w.keys("")
	leaves = slices.DeleteFunc(leaves, func(key string) bool { return parents[key] })
	if len(leaves) == 0 {
		return false, nil
	}
	return true, w.remove(ctx, leaves[w.random.IntN(len(leaves))])
}

func (w *work) remove(ctx context.Context, key string) error {
	return w.out.do(w.model, &model.Event{Op: model.Remove, Key: key}, func() error { return w.sn.Remove(ctx, key) })
}

// keys returns the keys of one kind, or of all, in order.
func (w *work) keys(kind string) []string {
	var keys []string
	for key, s := range w.model.Snapshots {
		if kind == "" || s.Kind == kind {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// pick returns a random key of a kind, or "".
func (w *work) pick(kind string) string {
	keys := w.keys(kind)
	if i := w.random.IntN(len(keys) + 1); i < len(keys) {
		return keys[i]
	}
	return ""
}
