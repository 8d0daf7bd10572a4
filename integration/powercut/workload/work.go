package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/integration/powercut/model"
)

// mostLayers bounds how many committed snapshots there are at a time.
const mostLayers = 12

// work does operations one after another, drawn by chance.
type work struct {
	sn     snapshots.Snapshotter
	random *rand.Rand
	out    *json.Encoder
	state  model.Model
	count  int
}

func newWork(sn snapshots.Snapshotter, seed uint64, out *json.Encoder) *work {
	return &work{sn: sn, random: rand.New(rand.NewPCG(seed, 0)), out: out}
}

// run goes on until an operation fails, or for ever.
func (w *work) run(ctx context.Context) error {
	for {
		if err := w.layer(ctx); err != nil {
			return err
		}
		for len(w.keys("Committed")) > mostLayers || w.random.IntN(3) == 0 {
			gone, err := w.removeLeaf(ctx)
			if err != nil {
				return err
			}
			if !gone {
				break
			}
		}
	}
}

// do prints an operation, does it, and prints it again.
func (w *work) do(e model.Event, f func() error) error {
	e.Begin = true
	if err := w.out.Encode(e); err != nil {
		return err
	}
	if err := f(); err != nil {
		return fmt.Errorf("%s %s: %w", e.Op, e.Key, err)
	}
	e.Begin = false
	w.state.Apply(e)
	return w.out.Encode(e)
}

// layer makes an active snapshot with some files, and mostly commits it.
func (w *work) layer(ctx context.Context) error {
	w.count++
	e := model.Event{Op: model.Prepare, Key: fmt.Sprintf("active-%d", w.count), Parent: w.pick("Committed")}
	var mounts []mount.Mount
	err := w.do(e, func() (err error) {
		mounts, err = w.sn.Prepare(ctx, e.Key, e.Parent)
		return err
	})
	if err != nil {
		return err
	}
	var digest string
	err = mount.WithTempMount(ctx, mounts, func(dir string) (err error) {
		if err := w.write(dir); err != nil {
			return err
		}
		digest, err = digestOf(dir)
		return err
	})
	if err != nil {
		return err
	}
	switch w.random.IntN(6) {
	case 0:
		return nil // it stays active
	case 1:
		view := model.Event{Op: model.View, Key: fmt.Sprintf("view-%d", w.count), Parent: w.pick("Committed")}
		if err := w.do(view, func() error { _, err := w.sn.View(ctx, view.Key, view.Parent); return err }); err != nil {
			return err
		}
	}
	commit := model.Event{Op: model.Commit, Key: e.Key, Name: fmt.Sprintf("layer-%d", w.count), Digest: digest}
	return w.do(commit, func() error { return w.sn.Commit(ctx, commit.Name, commit.Key) })
}

// write makes, changes and removes files.
func (w *work) write(dir string) error {
	for range 1 + w.random.IntN(6) {
		path := filepath.Join(dir, fmt.Sprintf("file-%d", w.random.IntN(8)))
		if w.random.IntN(5) == 0 {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
			continue
		}
		content := make([]byte, w.random.IntN(1<<19))
		for i := range content {
			content[i] = byte(w.random.Uint32())
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// removeLeaf removes a snapshot without children, if there is one.
func (w *work) removeLeaf(ctx context.Context) (bool, error) {
	parents := make(map[string]bool)
	for _, s := range w.state.Snapshots {
		parents[s.Parent] = true
	}
	leaves := w.keys("")
	leaves = slices.DeleteFunc(leaves, func(key string) bool { return parents[key] })
	if len(leaves) == 0 {
		return false, nil
	}
	e := model.Event{Op: model.Remove, Key: leaves[w.random.IntN(len(leaves))]}
	return true, w.do(e, func() error { return w.sn.Remove(ctx, e.Key) })
}

// keys returns the keys of one kind, or of all, in order.
func (w *work) keys(kind string) []string {
	var keys []string
	for key, s := range w.state.Snapshots {
		if kind == "" || s.Kind == kind {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// pick returns one of the keys of a kind, or none.
func (w *work) pick(kind string) string {
	keys := w.keys(kind)
	if i := w.random.IntN(len(keys) + 1); i < len(keys) {
		return keys[i]
	}
	return ""
}

// digestOf covers the names, modes and contents of all files.
func digestOf(dir string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%s %v\n", rel, info.Mode())
		if !info.Mode().IsRegular() {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%d %x\n", len(content), sha256.Sum256(content))
		return nil
	})
	return fmt.Sprintf("%x", h.Sum(nil)), err
}
