package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/integration/powercut/model"
	"github.com/thinsnap/thinsnap/metadata"
)

// verify holds a snapshotter against the model in a file, and then removes
// everything, to see that no key is stuck.
func verify(ctx context.Context, sn snapshots.Snapshotter, file string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var m model.Model
	if err := json.Unmarshal(content, &m); err != nil {
		return err
	}
	found := make(map[string]snapshots.Info)
	err = sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		found[info.Name] = info
		return nil
	})
	if err != nil {
		return err
	}
	m.Settle(func(key string) bool { _, ok := found[key]; return ok })
	var problems []error
	for key, want := range m.Snapshots {
		info, ok := found[key]
		switch {
		case !ok:
			problems = append(problems, fmt.Errorf("%s is lost", key))
		case info.Kind.String() != want.Kind || info.Parent != want.Parent:
			problems = append(problems, fmt.Errorf("%s is %v of %q, not %s of %q", key, info.Kind, info.Parent, want.Kind, want.Parent))
		default:
			if err := usable(ctx, sn, key, want); err != nil {
				problems = append(problems, fmt.Errorf("%s: %w", key, err))
			}
		}
	}
	for key := range found {
		if _, ok := m.Snapshots[key]; !ok {
			problems = append(problems, fmt.Errorf("%s should not be there", key))
		}
	}
	fmt.Fprintf(os.Stderr, "workload: %d snapshots verified\n", len(m.Snapshots))
	return errors.Join(append(problems, removeAll(ctx, sn, m))...)
}

// usable mounts a snapshot and, of a committed one, looks at all that is in it.
func usable(ctx context.Context, sn snapshots.Snapshotter, key string, want model.Snapshot) error {
	if want.Kind != "Committed" {
		mounts, err := sn.Mounts(ctx, key)
		if err != nil {
			return err
		}
		return mount.WithTempMount(ctx, mounts, func(dir string) error {
			_, err := digestOf(dir)
			return err
		})
	}
	view := "verify " + key
	mounts, err := sn.View(ctx, view, key)
	if err != nil {
		return err
	}
	err = mount.WithTempMount(ctx, mounts, func(dir string) error {
		digest, err := digestOf(dir)
		if err == nil && digest != want.Digest {
			err = fmt.Errorf("its content is %s, not %s", digest, want.Digest)
		}
		return err
	})
	return errors.Join(err, sn.Remove(ctx, view))
}

// removeAll removes every snapshot, children first.
func removeAll(ctx context.Context, sn snapshots.Snapshotter, m model.Model) error {
	children := make(map[string]int)
	for _, s := range m.Snapshots {
		children[s.Parent]++
	}
	for len(m.Snapshots) > 0 {
		removed := false
		for key, s := range m.Snapshots {
			if children[key] > 0 {
				continue
			}
			if err := sn.Remove(ctx, key); err != nil {
				return fmt.Errorf("remove %s: %w", key, err)
			}
			delete(m.Snapshots, key)
			children[s.Parent]--
			removed = true
		}
		if !removed {
			return errors.New("the snapshots are each other's parents")
		}
	}
	cleaner, ok := sn.(snapshots.Cleaner)
	if !ok {
		return errors.New("the snapshotter cannot clean up")
	}
	return cleaner.Cleanup(ctx)
}

func checkStore(ctx context.Context, path string) error {
	store, err := metadata.Open(path, metadata.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	problems, err := store.Check(ctx)
	for _, p := range problems {
		err = errors.Join(err, errors.New(p.String()))
	}
	return errors.Join(err, store.Close())
}
