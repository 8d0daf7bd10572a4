package differ

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
)

const (
	// writeTime is how long containerd keeps a layer while it is written.
	writeTime = 24 * time.Hour
	// useTime is how long containerd keeps a layer that its client has not used yet.
	useTime = time.Hour
)

// Connect connects to the containerd whose call has the context.
type Connect func(ctx context.Context) (*grpc.ClientConn, error)

// containerd is a connection to containerd's content store. The context has the name space, and a lease.
type containerd struct {
	ctx     context.Context //nolint:containedctx // it carries the name space and the lease
	conn    *grpc.ClientConn
	content content.Store
	leases  leases.Manager
	own     *leases.Lease // nil if the caller has one
}

// open connects to the content store. The name space is that of the call, or else that of the snapshot. What is
// written belongs to the caller's lease, if the call has one: containerd does not always pass it on.
func (d *Differ) open(ctx context.Context, key string) (*containerd, error) {
	namespace, ok := namespaces.Namespace(ctx)
	if !ok {
		namespace, _, _ = strings.Cut(key, "/")
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	conn, err := d.connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to containerd: %w", err)
	}
	c := &containerd{
		conn: conn, content: contentproxy.NewContentStore(conn),
		leases: leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn)),
	}
	id, ok := leases.FromContext(ctx)
	if !ok {
		lease, err := c.leases.Create(ctx, leases.WithRandomID(), leases.WithExpiration(writeTime))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("create a lease: %w", err), conn.Close())
		}
		id, c.own = lease.ID, &lease
	}
	c.ctx = leases.WithLease(ctx, id)
	return c, nil
}

// keep has containerd keep a layer until its client can have used it.
func (c *containerd) keep(ctx context.Context, layer digest.Digest) error {
	resource := leases.Resource{ID: layer.String(), Type: "content"}
	if c.own == nil {
		id, _ := leases.FromContext(ctx)
		return c.leases.AddResource(ctx, leases.Lease{ID: id}, resource)
	}
	lease, err := c.leases.Create(ctx, leases.WithRandomID(), leases.WithExpiration(useTime))
	if err != nil {
		return err
	}
	return c.leases.AddResource(ctx, lease, resource)
}

// close releases the lease under which the layer was written, and the connection.
func (c *containerd) close() {
	if c.own != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), releaseTime)
		defer cancel()
		if err := c.leases.Delete(ctx, *c.own); err != nil { // it expires
			log.G(ctx).WithError(err).Warn("a lease in containerd could not be deleted, and expires in a day")
		}
	}
	_ = c.conn.Close()
}
