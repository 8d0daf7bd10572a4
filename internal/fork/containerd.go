package fork

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/leases"
	leaseproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	// leaseTime is how long a fork may take: a Prepare waits until the source's unwritten data is on the disk. If the
	// command is killed, containerd's collector leaves its snapshot alone for this time.
	leaseTime = 10 * time.Minute
	// undoTime limits the undoing of a fork that failed or was interrupted.
	undoTime = 10 * time.Second
)

// Containerd is a connection to containerd. Its methods return errors with classes of errdefs.
type Containerd struct {
	conn       *grpc.ClientConn
	containers containersapi.ContainersClient
	leases     leases.Manager
}

// Connect returns a connection to containerd's socket, given as a path or unix://PATH. The first call opens it.
func Connect(address string) (*Containerd, error) {
	conn, err := grpc.NewClient("unix://"+strings.TrimPrefix(address, "unix://"),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", address, err)
	}
	return &Containerd{
		conn:       conn,
		containers: containersapi.NewContainersClient(conn),
		leases:     leaseproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn)),
	}, nil
}

// Close closes the connection.
func (c *Containerd) Close() error { return c.conn.Close() }

// Container is a container that can be forked.
type Container struct {
	ID, Namespace string
	Snapshotter   string // its name in containerd
	SnapshotKey   string // without namespace and number, as in containerd
	record        *containersapi.Container
}

// Container returns a container. It returns errdefs.ErrFailedPrecondition if the container has no snapshot.
func (c *Containerd) Container(ctx context.Context, namespace, id string) (Container, error) {
	found, err := c.containers.Get(namespaces.WithNamespace(ctx, namespace), &containersapi.GetContainerRequest{ID: id})
	if err = errgrpc.ToNative(err); err != nil {
		return Container{}, fmt.Errorf("find container %q in containerd's namespace %q: %w", id, namespace, err)
	}
	record := found.GetContainer()
	source := Container{
		ID: id, Namespace: namespace, Snapshotter: record.GetSnapshotter(), SnapshotKey: record.GetSnapshotKey(),
		record: record,
	}
	if source.SnapshotKey == "" {
		return source, fmt.Errorf("container %q has no snapshot: %w", id, errdefs.ErrFailedPrecondition)
	}
	return source, nil
}

// WrongSnapshotter returns the error for a container whose snapshot is not in thinsnap. The parameter thinsnap is the
// name of thinsnap in containerd.
func WrongSnapshotter(source Container, thinsnap string) error {
	return fmt.Errorf("container %q has its snapshot in %q, and containerd knows thinsnap as %q: %w",
		source.ID, source.Snapshotter, thinsnap, errdefs.ErrFailedPrecondition)
}

// A Ticket allows one Prepare to fork a snapshot.
type Ticket struct {
	Label, Token string            // label for the Prepare, with the token as value
	Snapshotter  string            // containerd's name of thinsnap
	Parent       string            // containerd's key of the source's parent, which is also the fork's
	Labels       map[string]string // of the source
}

// ForkContainer creates a snapshot and a container, both named id. If it fails, containerd's collector removes the
// snapshot, at the latest after leaseTime. issue returns the ticket for the snapshot; it is called after the checks
// that need no ticket.
func (c *Containerd) ForkContainer(
	ctx context.Context, source Container, id string, issue func(context.Context) (Ticket, error),
) (err error) {
	if err := identifiers.Validate(id); err != nil {
		return fmt.Errorf("name of the fork: %w", err)
	}
	record, err := copyRecord(source.record, id)
	if err != nil {
		return err
	}
	ctx = namespaces.WithNamespace(ctx, source.Namespace)
	switch _, err := c.containers.Get(ctx, &containersapi.GetContainerRequest{ID: id}); {
	case err == nil:
		return fmt.Errorf("container %q: %w", id, errdefs.ErrAlreadyExists)
	case !errdefs.IsNotFound(errgrpc.ToNative(err)):
		return fmt.Errorf("find container %q: %w", id, errgrpc.ToNative(err))
	}
	ctx, release, err := c.lease(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release(err != nil)) }()
	ticket, err := issue(ctx)
	if err != nil {
		return err
	}
	if ticket.Snapshotter != source.Snapshotter {
		return WrongSnapshotter(source, ticket.Snapshotter)
	}
	if err := c.prepare(ctx, ticket, id, nil); err != nil {
		return err
	}
	if _, err := c.containers.Create(ctx, &containersapi.CreateContainerRequest{Container: record}); err != nil {
		return fmt.Errorf("create container %q: %w", id, errgrpc.ToNative(err))
	}
	return nil
}

// ForkSnapshot creates a snapshot. containerd's collector never removes it.
func (c *Containerd) ForkSnapshot(ctx context.Context, namespace string, ticket Ticket, key string) error {
	if err := identifiers.Validate(key); err != nil {
		return fmt.Errorf("name of the fork: %w", err)
	}
	return c.prepare(namespaces.WithNamespace(ctx, namespace), ticket, key,
		map[string]string{"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339)})
}

func (c *Containerd) snapshotter(name string) snapshots.Snapshotter {
	return snapshotproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(c.conn), name)
}

func (c *Containerd) prepare(ctx context.Context, t Ticket, key string, labels map[string]string) error {
	all := map[string]string{t.Label: t.Token}
	maps.Copy(all, inherited(t.Labels))
	maps.Copy(all, labels)
	if _, err := c.snapshotter(t.Snapshotter).Prepare(ctx, key, t.Parent, snapshots.WithLabels(all)); err != nil {
		return fmt.Errorf("prepare snapshot %q: %w", key, err)
	}
	return nil
}

// inherited returns the labels that a fork needs from its source: the id mapping. The size needs no label, because a
// fork has its source's.
func inherited(labels map[string]string) map[string]string {
	needed := maps.Clone(labels)
	maps.DeleteFunc(needed, func(label, _ string) bool {
		return label != snapshots.LabelSnapshotUIDMapping && label != snapshots.LabelSnapshotGIDMapping
	})
	return needed
}

// lease protects objects that are created with the returned context from containerd's collector, until release. With
// collect, release waits until the collector has removed the unused ones. The caller may not know them: the answer to
// the call that created one may have been lost.
func (c *Containerd) lease(ctx context.Context) (_ context.Context, release func(collect bool) error, _ error) {
	lease, err := c.leases.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseTime))
	if err != nil {
		return ctx, nil, fmt.Errorf("create a lease in containerd: %w", err)
	}
	return leases.WithLease(ctx, lease.ID), func(collect bool) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		var opts []leases.DeleteOpt
		if collect {
			opts = append(opts, leases.SynchronousDelete)
		}
		if err := c.leases.Delete(ctx, lease, opts...); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("delete the lease %s in containerd: %w", lease.ID, err)
		}
		return nil
	}, nil
}
