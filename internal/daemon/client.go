package daemon

import (
	"context"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// client describes the store's client.
func (d *Daemon) client(ctx context.Context) (admin.StoreClient, error) {
	state, err := d.clients.State(ctx)
	if err != nil {
		return admin.StoreClient{}, err
	}
	return admin.StoreClient{
		Proxy: state.Proxy, PID: state.Process.PID, Program: state.Process.Program, Installation: state.Installation,
		Since: state.Since, Alive: state.Lives, Unseen: !state.Since.IsZero() && state.Process.PID == 0,
		KeptSnapshots: state.Kept, RefusedCalls: state.Refused, LastRefused: state.LastRefused,
	}, nil
}

// AcceptClient implements admin.Backend.
func (d *Daemon) AcceptClient(ctx context.Context) (admin.StoreClient, error) {
	if err := d.clients.Accept(ctx); err != nil {
		return admin.StoreClient{}, err
	}
	return d.client(ctx)
}

// ResetClient implements admin.Backend.
func (d *Daemon) ResetClient(ctx context.Context) (admin.StoreClient, error) {
	if err := d.clients.Reset(ctx); err != nil {
		return admin.StoreClient{}, err
	}
	return d.client(ctx)
}
