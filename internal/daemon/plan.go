package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/program"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/kernel"
	"github.com/thinsnap/thinsnap/internal/provision"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/internal/trustedpath"
	"github.com/thinsnap/thinsnap/metadata"
)

// PlanPool returns the shell commands that CreatePool would run, and one error with everything that
// would make CreatePool or the daemon's start fail. It changes nothing, except that LVM activates
// an inactive pool in mode "existing".
func PlanPool(ctx context.Context, c config.Config) ([]string, error) {
	lines, made, err := planPool(ctx, c)
	return lines, errors.Join(err, rootdir.Check(c.Root), checkKernel(c, made), checkPrograms(ctx, c), checkSockets(c))
}

// planPool returns the commands. begun is true if the root has a store: an earlier start may have
// made a part of the pool.
func planPool(ctx context.Context, c config.Config) (lines []string, begun bool, err error) {
	store, err := metadata.Open(rootdir.Store(c.Root), metadata.Options{ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		store, err = nil, nil
	}
	if err != nil {
		return nil, true, err
	}
	if store != nil {
		defer func() { err = errors.Join(err, store.Close()) }()
		if err := requireNoPool(ctx, c, store); err != nil {
			return nil, true, err
		}
	}
	lines, err = provision.Plan(ctx, store, c)
	return lines, store != nil, err
}

// checkKernel returns an error if the kernel is too old, has no device-mapper, or has a foreign
// device with the new pool's name. If begun, the device may be the pool's own; the start checks
// that.
func checkKernel(c config.Config, begun bool) (err error) {
	if err := kernel.Require(); err != nil {
		return err
	}
	control, err := devmapper.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	if begun || c.Pool.Mode != config.ModeLoop {
		return nil
	}
	if other, err := control.Info(c.Pool.Name); err == nil {
		return fmt.Errorf("device %s has UUID %q: %w; choose another pool.name, or remove that device: %w",
			c.Pool.Name, other.UUID, pool.ErrNameTaken, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// checkPrograms returns an error if mkfs is missing.
func checkPrograms(ctx context.Context, c config.Config) error {
	if _, err := program.Find(ctx, "mkfs."+c.Filesystem.Type); err != nil {
		return fmt.Errorf("mkfs.%s: %w: install it: %w", c.Filesystem.Type, err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// checkSockets returns an error if a socket cannot be created, or another file has its path.
func checkSockets(c config.Config) error {
	var all []error
	for _, path := range []string{c.Address, c.AdminAddress} {
		if _, err := trustedpath.Resolve(path); err != nil {
			all = append(all, fmt.Errorf("listen on %s: %w", path, err))
			continue
		}
		if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
			all = append(all, fmt.Errorf("listen on %s: the path exists and is not a socket: %w", path,
				errdefs.ErrFailedPrecondition))
		}
	}
	return errors.Join(all...)
}
