package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper"
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
	lines, err := planPool(ctx, c)
	return lines, errors.Join(err, rootdir.Check(c.Root), checkKernel(), checkPrograms(ctx, c), checkSockets(c))
}

func planPool(ctx context.Context, c config.Config) (lines []string, err error) {
	store, err := metadata.Open(rootdir.Store(c.Root), metadata.Options{ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		store, err = nil, nil
	}
	if err != nil {
		return nil, err
	}
	if store != nil {
		defer func() { err = errors.Join(err, store.Close()) }()
		if err := requireNoPool(ctx, c, store); err != nil {
			return nil, err
		}
	}
	lines, err = provision.Plan(ctx, store, c)
	return lines, errors.Join(err, checkName(ctx, store, c))
}

// checkName returns an error if a foreign device has the new pool's name.
func checkName(ctx context.Context, store *metadata.Store, c config.Config) (err error) {
	control, err := devmapper.Open()
	if err != nil {
		return nil // checkKernel reports it
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	return provision.RequireName(ctx, store, control, c)
}

// checkKernel returns an error if the kernel is too old or has no device-mapper.
func checkKernel() error {
	if err := kernel.Require(); err != nil {
		return err
	}
	control, err := devmapper.Open()
	if err != nil {
		return err
	}
	return control.Close()
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
