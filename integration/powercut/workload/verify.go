package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	snapshotters "github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/thinsnap/thinsnap/integration/powercut/content"
	"github.com/thinsnap/thinsnap/integration/powercut/model"
	"github.com/thinsnap/thinsnap/internal/dmtest/fsck"
)

const (
	// verifyPrefix is the prefix of Views that verify layers.
	verifyPrefix = "verify "
	// verifyAtOnce is the number of snapshots that are verified concurrently.
	verifyAtOnce = 4
)

// verifier compares a snapshotter that was started after a power cut with the model of its acknowledged operations.
type verifier struct {
	sn         snapshotters.Snapshotter
	model      *model.Model
	out        *journal
	filesystem string

	mu       sync.Mutex
	problems []error
	count    model.Count
}

func (v *verifier) problem(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.problems = append(v.problems, fmt.Errorf(format, args...))
}

func (v *verifier) run(ctx context.Context) error {
	if err := v.removeEarlier(ctx); err != nil {
		return err
	}
	found, err := list(ctx, v.sn)
	if err != nil {
		return err
	}
	v.settle(found)
	work := new(errgroup.Group)
	work.SetLimit(verifyAtOnce)
	for key, want := range v.model.Snapshots {
		info, ok := found[key]
		switch {
		case !ok:
			v.problem("%s is lost", key)
		case info.Kind.String() != want.Kind || info.Parent != want.Parent:
			v.problem("%s is %v of %q, not %s of %q", key, info.Kind, info.Parent, want.Kind, want.Parent)
		default:
			v.count.Snapshots++
			work.Go(func() error {
				if err := v.usable(ctx, key, want); err != nil {
					v.problem("%s: %w", key, err)
				}
				return nil
			})
		}
	}
	for key := range found {
		if _, ok := v.model.Snapshots[key]; !ok {
			v.problem("%s should not be there", key)
		}
	}
	if err := work.Wait(); err != nil {
		return err
	}
	v.out.print(model.Event{Op: model.Verified, Count: &v.count})
	return errors.Join(v.problems...)
}

// removeEarlier removes the Views of an interrupted verification.
func (v *verifier) removeEarlier(ctx context.Context) error {
	found, err := list(ctx, v.sn)
	if err != nil {
		return err
	}
	for key := range found {
		if strings.HasPrefix(key, verifyPrefix) {
			if err := v.sn.Remove(ctx, key); err != nil {
				return fmt.Errorf("remove %s: %w", key, err)
			}
		}
	}
	return nil
}

func list(ctx context.Context, sn snapshotters.Snapshotter) (map[string]snapshotters.Info, error) {
	found := make(map[string]snapshotters.Info)
	return found, sn.Walk(ctx, func(_ context.Context, info snapshotters.Info) error {
		found[info.Name] = info
		return nil
	})
}

// settle finds out whether the operation in doubt took effect, by the key that it makes or removes.
func (v *verifier) settle(found map[string]snapshotters.Info) {
	e := v.model.Doubt
	if e == nil {
		return
	}
	key, done := e.Key, true
	switch e.Op {
	case model.Commit:
		key = e.Name
	case model.Remove:
		done = false
	}
	if _, ok := found[key]; !ok {
		done = !done
	}
	v.out.settle(v.model, done)
}

// usable mounts a snapshot and reads all its content.
func (v *verifier) usable(ctx context.Context, key string, want model.Snapshot) error {
	if want.Kind == "Committed" {
		return v.layer(ctx, key, want.Digest)
	}
	mounts, err := v.sn.Mounts(ctx, key)
	if interruptible(key) && v.filesystem == "ext4" {
		// An unpack that may be incomplete must not be continued. An unpack of which nothing has reached the disk can
		// be: it has its parent's content.
		if errdefs.IsFailedPrecondition(err) {
			return nil
		}
		if err == nil && want.Parent == "" {
			return v.empty(ctx, mounts)
		}
		want.Digest = v.model.Snapshots[want.Parent].Digest
	}
	if err != nil {
		return err
	}
	return v.compare(ctx, mounts, want.Digest)
}

func (v *verifier) empty(ctx context.Context, mounts []mount.Mount) error {
	return mount.WithTempMount(ctx, mounts, func(dir string) error {
		entries, err := os.ReadDir(dir)
		if err == nil && len(entries) > 0 {
			return fmt.Errorf("it is an interrupted unpack, but can be mounted, and has %d entries", len(entries))
		}
		return err
	})
}

// layer checks a committed snapshot, and compares its content.
func (v *verifier) layer(ctx context.Context, key, digest string) error {
	return v.view(ctx, key, func(mounts []mount.Mount) error {
		return errors.Join(check(ctx, mounts), v.compare(ctx, mounts, digest))
	})
}

// check checks the file system of a View.
func check(ctx context.Context, view []mount.Mount) error {
	return fsck.Device(ctx, view[0].Source, view[0].Type)
}

// view calls look with a View of a committed snapshot.
func (v *verifier) view(ctx context.Context, key string, look func([]mount.Mount) error) error {
	view := verifyPrefix + key
	mounts, err := v.sn.View(ctx, view, key, snapshotters.WithLabels(map[string]string{"containerd.io/gc.root": "verify"}))
	if err != nil {
		return err
	}
	return errors.Join(look(mounts), v.sn.Remove(ctx, view))
}

func (v *verifier) compare(ctx context.Context, mounts []mount.Mount, want string) error {
	return mount.WithTempMount(ctx, mounts, func(dir string) error {
		got, err := content.Digest(dir)
		switch {
		case err != nil:
			return err
		case want == "":
			return nil
		case got != want:
			return fmt.Errorf("its content is %s, not %s", got, want)
		}
		v.mu.Lock()
		v.count.Digests++
		v.mu.Unlock()
		return nil
	})
}

// removeAll removes every snapshot, children first, which shows that none is stuck.
func removeAll(ctx context.Context, sn snapshotters.Snapshotter) error {
	for {
		found, err := list(ctx, sn)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			break
		}
		parents := make(map[string]bool)
		for _, info := range found {
			parents[info.Parent] = true
		}
		for key := range found {
			if parents[key] {
				continue
			}
			if err := sn.Remove(ctx, key); err != nil {
				return fmt.Errorf("remove %s: %w", key, err)
			}
		}
	}
	cleaner, ok := sn.(snapshotters.Cleaner)
	if !ok {
		return errors.New("the snapshotter has no Cleanup")
	}
	return cleaner.Cleanup(ctx)
}
