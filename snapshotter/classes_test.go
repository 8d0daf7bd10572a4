package snapshotter_test

import (
	"errors"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// TestFaultsOfThePoolHaveAClass checks that every error of the pool gets a class in every operation.
func TestFaultsOfThePoolHaveAClass(t *testing.T) {
	faults := []error{
		devmapper.ErrNotFound, pool.ErrNotActive, syscall.EINVAL, syscall.EPERM, syscall.EFBIG, syscall.ENOENT, errors.New("odd"),
	}
	for _, fault := range faults {
		t.Run(fault.Error(), func(t *testing.T) {
			b := newBench(t, fakeConfig())
			b.layer(t, "layer", "", "content")
			b.prepare(t, "box", "layer")
			ctx := t.Context()
			b.pool.SetFault(func(string, thin.ID) error { return fault })
			failed := 0
			for name, call := range map[string]func() error{
				"Prepare": func() error { _, err := b.Prepare(ctx, "a", "layer"); return err },
				"larger":  func() error { _, err := b.Prepare(ctx, "b", "layer", sized("128MiB")); return err },
				"lowest":  func() error { _, err := b.Prepare(ctx, "c", "", sized("128MiB")); return err },
				"View":    func() error { _, err := b.View(ctx, "d", "layer"); return err },
				"Mounts":  func() error { _, err := b.Mounts(ctx, "box"); return err },
				"Usage":   func() error { _, err := b.Usage(ctx, "box"); return err },
				"Commit":  func() error { return b.Commit(ctx, "next", "box") },
				"Trim":    func() error { _, err := b.Trim(ctx, "box"); return err },
			} {
				if err := call(); err != nil {
					failed++
					require.NotEqual(t, errdefs.ErrUnknown, errdefs.Resolve(err), "%s: %v", name, err)
				}
			}
			require.Greater(t, failed, 4)
			b.pool.SetFault(func(string, thin.ID) error { return nil })
		})
	}
}

func sized(size string) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{snapshotter.LabelSize: size})
}
