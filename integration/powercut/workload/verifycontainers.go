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

	"github.com/thinsnap/thinsnap/integration/powercut/model"
)

// verifyContainers compares a containerd that was started after a power cut with the model of its
// acknowledged operations.
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
	out.print(model.Event{Op: model.Verified, Count: &v.count})
	return errors.Join(v.problems...)
}

// settleContainers finds out whether the operation in doubt was done. A container that was being
// run, or removed, is removed.
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
			_, exists = found[e.Name] // it is recorded before it is unpacked
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

// container verifies the file that a container has written.
func (v *verifier) container(ctx context.Context, name string, want model.Container) error {
	mounts, err := v.sn.Mounts(ctx, name)
	if err != nil {
		return err
	}
	return mount.WithTempMount(ctx, mounts, func(dir string) error {
		data, err := os.ReadFile(filepath.Join(dir, "written"))
		if got := fmt.Sprintf("%x", sha256.Sum256(data)); err == nil && got != want.Digest {
			err = fmt.Errorf("what it wrote is %s, not %s, in %d bytes", got, want.Digest, len(data))
		}
		v.count.Digests++
		return err
	})
}
