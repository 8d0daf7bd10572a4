package daemon

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/clients"
	"github.com/thinsnap/thinsnap/internal/owners"
	"github.com/thinsnap/thinsnap/metadata"
)

const (
	// ownersAge is how long an answer is kept: each asks containerd for all of its images and containers.
	ownersAge = 5 * time.Second
	// ownersTime limits the time that containerd has to answer.
	ownersTime = 10 * time.Second
)

// ownerCache keeps the last answer.
type ownerCache struct {
	mu     sync.Mutex
	at     time.Time
	answer admin.Owners
}

// Owners implements admin.Backend.
func (d *Daemon) Owners(ctx context.Context) (admin.Owners, error) {
	d.owners.mu.Lock()
	defer d.owners.mu.Unlock()
	if !d.owners.at.IsZero() && time.Since(d.owners.at) < ownersAge {
		return d.owners.answer, nil
	}
	answer, err := d.askOwners(ctx)
	if err == nil {
		d.owners.at, d.owners.answer = time.Now(), answer
	}
	return answer, err
}

func (d *Daemon) askOwners(ctx context.Context) (admin.Owners, error) {
	state, err := d.clients.State(ctx)
	if err != nil {
		return admin.Owners{}, err
	}
	if !state.Lives || state.Process.PID == 0 {
		return admin.Owners{Unknown: "no containerd is connected"}, nil
	}
	var all []owners.Snapshot
	if err := d.snapshotter.WalkWithoutLabels(ctx, func(rec metadata.Snapshot) error {
		all = append(all, owners.Snapshot{Key: rec.Key, Parent: rec.Parent})
		return nil
	}); err != nil {
		return admin.Owners{}, err
	}
	asking, cancel := context.WithTimeout(ctx, ownersTime)
	defer cancel()
	conn, err := clients.Dial(asking, state.Process)
	if err != nil {
		return admin.Owners{Unknown: err.Error()}, ctx.Err()
	}
	defer conn.Close()
	found, err := owners.Of(asking, conn, state.Proxy, all)
	if err != nil {
		return admin.Owners{Unknown: err.Error()}, ctx.Err()
	}
	answer := admin.Owners{}
	for key, o := range found {
		answer.Owners = append(answer.Owners, wireOwner(key, o))
	}
	slices.SortFunc(answer.Owners, func(a, b admin.Owner) int { return strings.Compare(a.Key, b.Key) })
	return answer, nil
}

func wireOwner(key string, o owners.Owner) admin.Owner {
	owner := admin.Owner{Key: key, Namespace: o.Namespace, Images: o.Images}
	if c := o.Container; c != nil {
		owner.Container = &admin.Container{
			ID: c.ID, Name: c.Name, Image: c.Image, Pod: c.Pod, PodNamespace: c.PodNamespace, Sandbox: c.Sandbox,
		}
	}
	return owner
}
