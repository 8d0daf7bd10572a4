package daemon

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/clients"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/owners"
	"github.com/thinsnap/thinsnap/metadata"
)

const (
	// ownersAge is the lifetime of an answer. Each query asks containerd for all of its images and
	// containers.
	ownersAge = 5 * time.Second
	// ownersTime limits a query to containerd.
	ownersTime = 10 * time.Second
)

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

// askOwners asks the process of each client for the owners of the client's snapshots.
func (d *Daemon) askOwners(ctx context.Context) (admin.Owners, error) {
	of := make(map[string][]owners.Snapshot) // by client
	if err := d.snapshotter.WalkWithoutLabels(ctx, func(rec metadata.Snapshot) error {
		_, key := metadata.SplitKey(rec.Key)
		_, parent := metadata.SplitKey(rec.Parent)
		name := clientOf(rec.Key)
		of[name] = append(of[name], owners.Snapshot{Key: key, Parent: parent})
		return nil
	}); err != nil {
		return admin.Owners{}, err
	}
	answer := admin.Owners{}
	var unknown []string
	for _, client := range d.config.AllClients() {
		prefix := ""
		if client.Name != config.DefaultClient {
			prefix = "client " + client.Name + ": "
			if len(of[client.Name]) == 0 {
				continue
			}
		}
		found, why, err := d.askOwnersOf(ctx, client.Name, of[client.Name])
		if err != nil {
			return admin.Owners{}, err
		}
		if why != "" {
			unknown = append(unknown, prefix+why)
		}
		for key, o := range found {
			shown := metadata.ShowKey(metadata.KeyPrefix(config.KeySpace(client.Name)) + key)
			answer.Owners = append(answer.Owners, wireOwner(shown, o))
		}
	}
	answer.Unknown = strings.Join(unknown, "; ")
	slices.SortFunc(answer.Owners, func(a, b admin.Owner) int { return strings.Compare(a.Key, b.Key) })
	return answer, nil
}

// askOwnersOf returns the owners of a client's snapshots, or the reason why they are unknown.
func (d *Daemon) askOwnersOf(
	ctx context.Context, client string, all []owners.Snapshot,
) (found map[string]owners.Owner, unknown string, err error) {
	state, err := d.clients[client].State(ctx)
	if err != nil {
		return nil, "", err
	}
	if !state.Lives || state.Process.PID == 0 {
		return nil, "no containerd is connected", nil
	}
	asking, cancel := context.WithTimeout(ctx, ownersTime)
	defer cancel()
	conn, err := clients.Dial(asking, state.Process)
	if err != nil {
		return nil, err.Error(), ctx.Err()
	}
	defer conn.Close()
	if found, err = owners.Of(asking, conn, state.Proxy, all); err != nil {
		return nil, err.Error(), ctx.Err()
	}
	return found, "", nil
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
