package differ

import (
	"context"
	"fmt"
	"strings"
	"time"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"github.com/thinsnap/thinsnap/metadata"
)

const (
	// writeTime is the lifetime of containerd's lease for a large layer while it is written.
	writeTime = 24 * time.Hour
	// All layers of a periodTime share a lease of leaseTime, so containerd keeps an unused layer for
	// at least the difference.
	periodTime = time.Hour
	leaseTime  = 2 * periodTime
)

// Connect connects to the containerd that made the call of ctx. The connection is valid until
// release is called.
type Connect func(ctx context.Context) (conn *grpc.ClientConn, release func(), err error)

// containerd is a connection to containerd's content store.
type containerd struct {
	ctx     context.Context //nolint:containedctx // it carries the namespace, and the caller's lease
	content content.Store
	leases  leases.Manager
	release func()
}

// open connects to the content store. The namespace is that of the call, or otherwise that of the
// snapshot.
func (d *Differ) open(ctx context.Context, key string) (*containerd, error) {
	namespace, ok := namespaces.Namespace(ctx)
	if !ok {
		_, own := metadata.SplitKey(key)
		namespace, _, _ = strings.Cut(own, "/")
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	conn, release, err := d.connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to containerd: %w", err)
	}
	c := &containerd{
		ctx: ctx, content: contentproxy.NewContentStore(conn),
		leases: leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn)), release: release,
	}
	if id, ok := leases.FromContext(ctx); ok {
		c.ctx = leases.WithLease(ctx, id) // also as the header of calls to containerd
	}
	return c, nil
}

// lease returns a context with the caller's lease or, if containerd did not pass that on, with the
// lease that all layers share (periodTime).
func (c *containerd) lease() (context.Context, error) {
	if _, ok := leases.FromContext(c.ctx); ok {
		return c.ctx, nil
	}
	id := fmt.Sprintf("thinsnap-diff-%d", time.Now().Unix()/int64(periodTime/time.Second))
	_, err := c.leases.Create(c.ctx, leases.WithID(id), leases.WithExpiration(leaseTime))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, fmt.Errorf("create a lease: %w", err)
	}
	return leases.WithLease(c.ctx, id), nil
}

// label adds the uncompressed digest to a layer that containerd already had.
func (c *containerd) label(layer, diffID digest.Digest) error {
	info, err := c.content.Info(c.ctx, layer)
	if err != nil || info.Labels[labels.LabelUncompressed] != "" {
		return err
	}
	if info.Labels == nil {
		info.Labels = make(map[string]string)
	}
	info.Labels[labels.LabelUncompressed] = diffID.String()
	_, err = c.content.Update(c.ctx, info, "labels."+labels.LabelUncompressed)
	return err
}

// leaseLong is like lease, but creates a lease for one layer that takes long to write. Call keep and
// then end, which deletes that lease. end is nil under the caller's lease.
func (c *containerd) leaseLong() (ctx context.Context, end func(), err error) {
	if _, ok := leases.FromContext(c.ctx); ok {
		return c.ctx, nil, nil
	}
	own, err := c.leases.Create(c.ctx, leases.WithRandomID(), leases.WithExpiration(writeTime))
	if err != nil {
		return nil, nil, fmt.Errorf("create a lease: %w", err)
	}
	end = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), releaseTime)
		defer cancel()
		if err := c.leases.Delete(ctx, own); err != nil {
			log.G(ctx).WithError(err).Warn("a lease in containerd could not be deleted; it expires in a day")
		}
	}
	return leases.WithLease(c.ctx, own.ID), end, nil
}

// keep adds a layer to the shared lease, or to the caller's.
func (c *containerd) keep(layer digest.Digest) error {
	ctx, err := c.lease()
	if err != nil {
		return err
	}
	id, _ := leases.FromContext(ctx)
	return c.leases.AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: layer.String(), Type: "content"})
}
