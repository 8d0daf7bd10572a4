package daemon

import (
	"context"
	"time"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// Fork implements admin.Backend.
func (d *Daemon) Fork(ctx context.Context, key string) (admin.Fork, error) {
	stored, err := metadata.ReadKey(key)
	if err != nil {
		return admin.Fork{}, err
	}
	r, err := d.requireRegistry(clientOf(stored))
	if err != nil {
		return admin.Fork{}, err
	}
	client, err := r.State(ctx)
	if err != nil {
		return admin.Fork{}, err
	}
	expires := time.Now().Add(snapshotter.ForkTokenLife)
	token, err := d.snapshotter.IssueFork(ctx, stored)
	if err != nil {
		return admin.Fork{}, err
	}
	return admin.Fork{Token: token, Label: snapshotter.LabelFrom, ExpiresAt: expires, Snapshotter: client.Proxy}, nil
}
