package harnesstest

import (
	"context"
	"testing"

	images "github.com/containerd/containerd/api/services/images/v1"
	leases "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
)

// Pull pulls and unpacks the image with ctr. The release's ctr decides whether it uses the transfer service.
func (c *Containerd) Pull(t testing.TB, snapshotter, image string, flags ...string) {
	t.Helper()
	args := append([]string{"images", "pull", "--plain-http", "--snapshotter", snapshotter}, flags...)
	c.Ctr(t, append(args, image)...)
}

// MountImage mounts a view of the image, calls use with the directory, and removes the view.
func (c *Containerd) MountImage(t testing.TB, snapshotter, image string, use func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	c.Ctr(t, "images", "mount", "--snapshotter", snapshotter, image, dir)
	defer c.Ctr(t, "images", "unmount", "--snapshotter", snapshotter, "--rm", dir)
	use(dir)
}

// RemoveImage checks all layers, then removes an image and waits for the garbage collection of its
// content and snapshots.
func (c *Containerd) RemoveImage(t testing.TB, image string) {
	t.Helper()
	c.CheckLayers(t)
	c.call(t, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := images.NewImagesClient(conn).Delete(ctx, &images.DeleteImageRequest{Name: image, Sync: true})
		return err
	})
}

// CollectGarbage has containerd collect all garbage. That removes a snapshot of `ctr snapshots view`, which has no
// label that keeps it.
func (c *Containerd) CollectGarbage(t testing.TB) {
	t.Helper()
	c.call(t, func(ctx context.Context, conn *grpc.ClientConn) error {
		client := leases.NewLeasesClient(conn)
		if _, err := client.Create(ctx, &leases.CreateRequest{ID: "collect"}); err != nil {
			return err
		}
		_, err := client.Delete(ctx, &leases.DeleteRequest{ID: "collect", Sync: true})
		return err
	})
}

// call calls the daemon directly, because an emulated guest needs a second to start ctr.
func (c *Containerd) call(t testing.TB, f func(ctx context.Context, conn *grpc.ClientConn) error) {
	t.Helper()
	conn, err := c.Dial()
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, f(namespaces.WithNamespace(t.Context(), c.Namespace), conn))
}

// Snapshot is a snapshot of a snapshotter.
type Snapshot struct {
	Key    string
	Parent string // empty if none
	Kind   string // Committed, Active or View
}

// Snapshots lists a snapshotter's snapshots.
func (c *Containerd) Snapshots(t testing.TB, snapshotter string) []Snapshot {
	t.Helper()
	var found []Snapshot
	c.call(t, func(ctx context.Context, conn *grpc.ClientConn) error {
		sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), snapshotter)
		return sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			found = append(found, Snapshot{Key: info.Name, Parent: info.Parent, Kind: info.Kind.String()})
			return nil
		})
	})
	return found
}

// TopLayer returns the key of the only snapshot that is not a parent.
func (c *Containerd) TopLayer(t testing.TB, snapshotter string) string {
	t.Helper()
	snapshots := c.Snapshots(t, snapshotter)
	parents := make(map[string]bool)
	for _, s := range snapshots {
		parents[s.Parent] = true
	}
	var top []string
	for _, s := range snapshots {
		if !parents[s.Key] {
			top = append(top, s.Key)
		}
	}
	require.Len(t, top, 1)
	return top[0]
}
