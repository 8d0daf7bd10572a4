package daemon

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/clients"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
)

// newClients returns the registries of the configured clients, by their names.
func newClients(c config.Config, store *metadata.Store) map[string]*clients.Registry {
	all := make(map[string]*clients.Registry)
	for _, client := range c.AllClients() {
		all[client.Name] = clients.New(store, config.KeySpace(client.Name))
	}
	return all
}

// Registry returns the registry of a configured client. It admits the calls to the snapshotter that
// Served returns.
func (d *Daemon) Registry(client string) *clients.Registry { return d.clients[client] }

// Served returns the snapshotter that serves a configured client.
func (d *Daemon) Served(client string) snapshots.Snapshotter {
	return d.clients[client].Guard(d.snapshotter.In(config.KeySpace(client)))
}

// clientOf returns the name of the client whose snapshot has the stored key.
func clientOf(stored string) string {
	space, _ := metadata.SplitKey(stored)
	if space == "" {
		return config.DefaultClient
	}
	return space
}

// requireRegistry returns the registry of a client. It fails with errdefs.ErrNotFound if the client
// is not configured.
func (d *Daemon) requireRegistry(client string) (*clients.Registry, error) {
	r, is := d.clients[client]
	if !is {
		return nil, fmt.Errorf("no client %q is configured ([[clients]]): %w", client, errdefs.ErrNotFound)
	}
	return r, nil
}

// describeClients describes the default client and the further ones: first those of the
// configuration, in its order, then those that only the store has.
func (d *Daemon) describeClients(
	ctx context.Context,
) (byDefault admin.ClientInfo, further []admin.ClientInfo, err error) {
	all := []admin.ClientInfo{}
	for _, configured := range d.config.AllClients() {
		client, err := d.client(ctx, configured.Name)
		if err != nil {
			return client, nil, err
		}
		client.Address = configured.Address
		all = append(all, client)
	}
	err = d.store.View(ctx, func(tx *metadata.Tx) error {
		for _, space := range tx.KeySpaces() {
			if d.clients[space] != nil {
				continue
			}
			record, err := tx.Client(space)
			if err != nil {
				return err
			}
			client := admin.ClientInfo{
				Name: space, Proxy: record.Proxy, PID: record.PID, Program: record.Program, Installation: record.Installation,
				Since: record.Since,
			}
			if client.Snapshots, err = countClient(tx, space); err != nil {
				return err
			}
			all = append(all, client)
		}
		return nil
	})
	return all[0], all[1:], err
}

func (d *Daemon) client(ctx context.Context, name string) (admin.ClientInfo, error) {
	r, err := d.requireRegistry(name)
	if err != nil {
		return admin.ClientInfo{}, err
	}
	state, err := r.State(ctx)
	if err != nil {
		return admin.ClientInfo{}, err
	}
	client := admin.ClientInfo{
		Name: name, Configured: true,
		Proxy: state.Proxy, PID: state.Process.PID, Program: state.Process.Program, Installation: state.Installation,
		Since: state.Since, Alive: state.Lives, Unseen: !state.Since.IsZero() && state.Process.PID == 0,
		KeptSnapshots: state.Kept, RefusedCalls: state.Refused, LastRefused: state.LastRefused,
	}
	err = d.store.View(ctx, func(tx *metadata.Tx) (err error) {
		client.Snapshots, err = countClient(tx, config.KeySpace(name))
		return err
	})
	return client, err
}

func countClient(tx *metadata.Tx, space string) (admin.SnapshotCounts, error) {
	kinds, err := tx.CountByKindIn(space)
	return countsOf(kinds), err
}

func countsOf(kinds metadata.KindCounts) admin.SnapshotCounts {
	return admin.SnapshotCounts{
		Active: uint64(kinds.Active), View: uint64(kinds.Views), Committed: uint64(kinds.Committed),
	}
}

// keeps returns a function that reports whether a snapshot is kept from its client's garbage
// collector.
func (d *Daemon) keeps(ctx context.Context) (func(metadata.Snapshot) bool, error) {
	of := make(map[string]func(metadata.Snapshot) bool)
	for name, r := range d.clients {
		keeps, err := r.Keeps(ctx)
		if err != nil {
			return nil, err
		}
		of[name] = keeps
	}
	return func(rec metadata.Snapshot) bool {
		keeps := of[clientOf(rec.Key)]
		return keeps != nil && keeps(rec)
	}, nil
}

// AcceptClient implements admin.Backend.
func (d *Daemon) AcceptClient(ctx context.Context, name string) (admin.ClientInfo, error) {
	return d.decide(ctx, name, (*clients.Registry).Accept)
}

// ResetClient implements admin.Backend.
func (d *Daemon) ResetClient(ctx context.Context, name string) (admin.ClientInfo, error) {
	return d.decide(ctx, name, (*clients.Registry).Reset)
}

func (d *Daemon) decide(
	ctx context.Context, name string, decision func(*clients.Registry, context.Context) error,
) (admin.ClientInfo, error) {
	r, err := d.requireRegistry(name)
	if err != nil {
		return admin.ClientInfo{}, err
	}
	if err := decision(r, ctx); err != nil {
		return admin.ClientInfo{}, err
	}
	return d.client(ctx, name)
}

// RemoveClient implements admin.Backend.
func (d *Daemon) RemoveClient(ctx context.Context, name string) (admin.RemovedClient, error) {
	removed := admin.RemovedClient{Name: name}
	if d.clients[name] != nil {
		return removed, fmt.Errorf("client %q is configured: first remove its entry from the configuration, and restart "+
			"thinsnap: %w", name, errdefs.ErrFailedPrecondition)
	}
	space := config.KeySpace(name)
	var records []metadata.Snapshot
	err := d.store.View(ctx, func(tx *metadata.Tx) error {
		records = nil
		if !slices.Contains(tx.KeySpaces(), space) {
			return fmt.Errorf("the store has no client %q: %w", name, errdefs.ErrNotFound)
		}
		return tx.ForEachIn(space, func(rec metadata.Snapshot) error {
			rec.Labels = nil
			records = append(records, rec)
			return nil
		})
	})
	if err != nil {
		return removed, err
	}
	if err := d.requireUnused(records); err != nil {
		return removed, fmt.Errorf("remove client %q: %w", name, err)
	}
	for _, rec := range childrenFirst(records) {
		if err := d.snapshotter.Remove(ctx, rec.Key); err != nil && !errdefs.IsNotFound(err) {
			return removed, err
		}
		removed.Snapshots++
	}
	if err := d.store.Update(ctx, func(tx *metadata.Tx) error { return tx.DropKeySpace(space) }); err != nil {
		return removed, fmt.Errorf("remove client %q: %w", name, err)
	}
	log.G(ctx).WithFields(log.Fields{"client": name, "snapshots": removed.Snapshots}).
		Info("removed a client and its snapshots")
	return removed, nil
}

// requireUnused fails with errdefs.ErrFailedPrecondition if an active snapshot or a View is open.
func (d *Daemon) requireUnused(records []metadata.Snapshot) error {
	for _, rec := range records {
		id := thin.ID(rec.VolumeID)
		if rec.Kind == snapshots.KindCommitted || !d.pool.IsActive(id) {
			continue
		}
		device, err := d.mappedDevice(admin.RoleThin, d.pool.VolumeName(id))
		if err != nil {
			return err
		}
		if device.OpenCount > 0 {
			return fmt.Errorf("snapshot %q is in use (%s): stop its containers: %w", rec.Key, device.Path,
				errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// childrenFirst sorts each snapshot before its parent.
func childrenFirst(records []metadata.Snapshot) []metadata.Snapshot {
	children, byKey := make(map[string]int), make(map[string]metadata.Snapshot, len(records))
	for _, rec := range records {
		children[rec.Parent]++
		byKey[rec.Key] = rec
	}
	var ordered []metadata.Snapshot
	for _, rec := range records {
		for children[rec.Key] == 0 {
			ordered = append(ordered, rec)
			children[rec.Key] = -1
			parent, is := byKey[rec.Parent]
			if !is {
				break
			}
			children[parent.Key]--
			rec = parent
		}
	}
	return ordered
}
