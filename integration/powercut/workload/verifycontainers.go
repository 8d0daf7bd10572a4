package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	snapshotters "github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/integration/powercut/model"
)

// verifyContainers compares a containerd that was started after a power cut with the model of its acknowledged
// operations.
func verifyContainers(ctx context.Context, c *containerd, m *model.Model, out *journal) error {
	if err := settleContainers(ctx, c, m, out); err != nil {
		return err
	}
	images, err := c.ctr("images", "ls", "--quiet")
	if err != nil {
		return err
	}
	names, err := c.ctr("containers", "ls", "--quiet")
	if err != nil {
		return err
	}
	v := &verifier{sn: c.snapshotter, model: m, out: out}
	if err := v.removeEarlier(ctx); err != nil {
		return err
	}
	for name, want := range m.Images {
		if !slices.Contains(images, name) {
			v.problem("image %s is lost", name)
			continue
		}
		if err := v.layer(ctx, want.Top, want.Digest); err != nil {
			v.problem("image %s: %w", name, err)
		}
		v.count.Images++
	}
	for name, want := range m.Containers {
		if !slices.Contains(names, name) {
			v.problem("container %s is lost", name)
			continue
		}
		if err := v.container(ctx, name, want); err != nil {
			v.problem("container %s of image %s: %w", name, want.Image, err)
		}
		v.count.Containers++
	}
	if err := v.checkAll(ctx); err != nil {
		return err
	}
	out.print(model.Event{Op: model.Verified, Count: &v.count})
	return errors.Join(v.problems...)
}

// checkAll checks the file system of every committed snapshot, also those of an interrupted pull.
func (v *verifier) checkAll(ctx context.Context) error {
	found, err := list(ctx, v.sn)
	if err != nil {
		return err
	}
	for key, info := range found {
		if info.Kind != snapshotters.KindCommitted {
			continue
		}
		err := v.view(ctx, key, func(mounts []mount.Mount) error { return check(ctx, mounts) })
		if err != nil && !errdefs.IsNotFound(err) { // containerd's collector removes those of an interrupted pull
			v.problem("layer %s: %w", key, err)
		}
	}
	return nil
}

// settleContainers finds out whether the operation in doubt took effect. It removes a container that was being run or
// removed.
func settleContainers(ctx context.Context, c *containerd, m *model.Model, out *journal) error {
	if m.Doubt == nil {
		return nil
	}
	e := *m.Doubt
	kind := "images"
	if e.Op == model.Run || e.Op == model.RemoveContainer {
		kind = "containers"
	}
	names, err := c.ctr(kind, "ls", "--quiet")
	if err != nil {
		return err
	}
	exists := slices.Contains(names, e.Key)
	switch e.Op {
	case model.Pull:
		if exists {
			found, err := list(ctx, c.snapshotter)
			if err != nil {
				return err
			}
			_, exists = found[e.Name] // recorded before the unpack
		}
		out.settle(m, exists)
	case model.RemoveImage:
		out.settle(m, !exists)
	default:
		if exists {
			if _, err := c.ctr(kind, "rm", e.Key); err != nil {
				return err
			}
		}
		out.settle(m, e.Op == model.RemoveContainer)
	}
	return nil
}

// container verifies the file that a container wrote.
func (v *verifier) container(ctx context.Context, name string, want model.Container) error {
	mounts, err := v.sn.Mounts(ctx, name)
	if err != nil {
		return err
	}
	return mount.WithTempMount(ctx, mounts, func(dir string) error {
		data, err := os.ReadFile(filepath.Join(dir, "written"))
		if got := fmt.Sprintf("%x", sha256.Sum256(data)); err == nil && got != want.Digest {
			err = fmt.Errorf("its file has the digest %s, not %s, in %d bytes", got, want.Digest, len(data))
		}
		v.count.Digests++
		return err
	})
}
