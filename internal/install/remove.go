package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/setup"
)

// Remove undoes Install and Configure. It keeps the pool and its data, and also files that were
// edited, which it logs. While containers use snapshots, it only stops new containers from using
// thinsnap, and fails with errdefs.ErrFailedPrecondition. The error names the pods: containerd
// needs the snapshotter to remove them.
func (m *Machine) Remove(ctx context.Context, kind setup.Kind) error {
	r, isThere, err := m.readRecord()
	if err != nil {
		return err
	}
	if !isThere {
		log.G(ctx).Info("the installer has not changed this machine, or has undone all changes")
		return nil
	}
	users, err := m.users(ctx)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		if err := m.configure(ctx, &r, kind, []string{self, "setup", string(kind)}); err != nil {
			return err
		}
		return fmt.Errorf("new containers no longer use thinsnap, but existing ones do, in these pods, snapshots or "+
			"devices: %s: delete their pods, also those of DaemonSets, which come back without thinsnap: %w",
			strings.Join(users, ", "), errdefs.ErrFailedPrecondition)
	}
	if err := m.configure(ctx, &r, kind, []string{self, "setup", string(kind), "--undo"}); err != nil {
		return err
	}
	if r.files.Empty() {
		return m.removeRecord()
	}
	if err := m.run(ctx, "systemctl", "disable", "--now", socket, service); err != nil {
		return err
	}
	if err := r.files.TakeBack(); errdefs.IsFailedPrecondition(err) {
		log.G(ctx).WithError(err).Warn("edited files are kept, and their record is removed")
	} else if err != nil {
		return err
	}
	if err := m.run(ctx, "systemctl", "daemon-reload"); err != nil {
		return err
	}
	return m.removeRecord()
}

// users returns the pods with containers on snapshots of the daemon, and the keys of the other
// active snapshots. If the daemon does not answer, for example after its pod was deleted, it
// returns the devices in use.
func (m *Machine) users(ctx context.Context) ([]string, error) {
	client := m.Admin
	if client == nil {
		cfg, err := config.Load(m.path(config.DefaultPath))
		if errors.Is(err, fs.ErrNotExist) {
			cfg, err = config.Default(), nil
		}
		if err != nil {
			return nil, err
		}
		client = admin.NewClient(cfg.AdminAddress)
	}
	all, err := client.Snapshots(ctx, false)
	if err != nil {
		log.G(ctx).WithError(err).Warn("the daemon does not say whether containers use its snapshots")
		if m.InUse != nil {
			return m.InUse()
		}
		return volumesInUse()
	}
	owners, err := client.Owners(ctx)
	if err != nil {
		return nil, err
	}
	pods := make(map[string]string)
	for _, o := range owners.Owners {
		if o.Container != nil && o.Container.Pod != "" {
			pods[o.Key] = o.Container.PodNamespace + "/" + o.Container.Pod
		}
	}
	var users []string
	for _, s := range all {
		if s.Kind != admin.KindActive {
			continue
		}
		user := pods[s.Key]
		if user == "" {
			user = s.Key
		}
		users = append(users, user)
	}
	slices.Sort(users)
	return slices.Compact(users), nil
}

// volumesInUse returns the devices of thinsnap's volumes that are mounted or open.
func volumesInUse() (names []string, err error) {
	control, err := devmapper.Open()
	if errors.Is(err, devmapper.ErrUnavailable) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	return pool.VolumesInUse(control)
}
