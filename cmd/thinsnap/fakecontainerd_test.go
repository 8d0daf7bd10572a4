package main

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	grpccodes "google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// fakeContainerd is a containerd with containers, snapshots and leases.
type fakeContainerd struct {
	address    string
	containers fakeContainers
	leases     fakeLeases
	snapshots  fakeSnapshots
}

type fakeContainers struct {
	containersapi.UnimplementedContainersServer

	all    map[string]*containersapi.Container // by NAMESPACE/ID
	failed error                               // returned by Create
}

type fakeLeases struct {
	leasesapi.UnimplementedLeasesServer

	held      map[string]bool // by id; true with an expiry
	collected bool            // the last deletion asked for a collection
}

type fakeSnapshots struct {
	snapshotsapi.UnimplementedSnapshotsServer

	prepared []*snapshotsapi.PrepareSnapshotRequest
	leased   []string // the lease of each call
	in       []string // the namespace of each call
	failed   error    // returned by Prepare
	hangs    func()   // called by Prepare, which then blocks until it is cancelled
}

// newFakeContainerd starts a containerd with the container box of fakeReports, and with others that
// cannot be forked.
func newFakeContainerd(t *testing.T) *fakeContainerd {
	t.Helper()
	f := &fakeContainerd{
		address: filepath.Join(t.TempDir(), "containerd.sock"),
		leases:  fakeLeases{held: make(map[string]bool)},
		containers: fakeContainers{all: map[string]*containersapi.Container{
			"default/box":    fakeContainer("box", "thinsnap"),
			"default/theirs": fakeContainer("theirs", "overlayfs"),
			"default/rootfs": {ID: "rootfs"},
			"moby/box":       fakeContainer("box", "thinsnap"),
		}},
	}
	l, err := net.Listen("unix", f.address)
	require.NoError(t, err)
	s := grpc.NewServer()
	containersapi.RegisterContainersServer(s, &f.containers)
	leasesapi.RegisterLeasesServer(s, &f.leases)
	snapshotsapi.RegisterSnapshotsServer(s, &f.snapshots)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return f
}

func fakeContainer(id, snapshotter string) *containersapi.Container {
	return &containersapi.Container{
		ID: id, Snapshotter: snapshotter, SnapshotKey: id, Image: "image",
		Spec: &anypb.Any{
			TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec",
			Value:   []byte(`{"linux": {"cgroupsPath": "/default/` + id + `"}}`),
		},
	}
}

func namespaceOf(ctx context.Context) string {
	namespace, _ := namespaces.Namespace(ctx)
	return namespace
}

func (f *fakeContainers) Get(ctx context.Context, r *containersapi.GetContainerRequest) (*containersapi.GetContainerResponse, error) {
	c, ok := f.all[namespaceOf(ctx)+"/"+r.GetID()]
	if !ok {
		return nil, status.Error(grpccodes.NotFound, "no such container")
	}
	return &containersapi.GetContainerResponse{Container: c}, nil
}

func (f *fakeContainers) Create(ctx context.Context, r *containersapi.CreateContainerRequest) (*containersapi.CreateContainerResponse, error) {
	if f.failed != nil {
		return nil, f.failed
	}
	f.all[namespaceOf(ctx)+"/"+r.GetContainer().GetID()] = r.GetContainer()
	return &containersapi.CreateContainerResponse{Container: r.GetContainer()}, nil
}

func (f *fakeSnapshots) Prepare(ctx context.Context, r *snapshotsapi.PrepareSnapshotRequest) (*snapshotsapi.PrepareSnapshotResponse, error) {
	if f.failed != nil {
		return nil, f.failed
	}
	lease := ""
	if values := metadata.ValueFromIncomingContext(ctx, leases.GRPCHeader); len(values) > 0 {
		lease = values[0]
	}
	if f.hangs != nil {
		f.hangs()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	f.prepared, f.leased, f.in = append(f.prepared, r), append(f.leased, lease), append(f.in, namespaceOf(ctx))
	return &snapshotsapi.PrepareSnapshotResponse{}, nil
}

func (f *fakeLeases) Create(_ context.Context, r *leasesapi.CreateRequest) (*leasesapi.CreateResponse, error) {
	f.held[r.GetID()] = r.GetLabels()["containerd.io/gc.expire"] != ""
	return &leasesapi.CreateResponse{Lease: &leasesapi.Lease{ID: r.GetID(), Labels: r.GetLabels()}}, nil
}

func (f *fakeLeases) Delete(_ context.Context, r *leasesapi.DeleteRequest) (*emptypb.Empty, error) {
	if !f.held[r.GetID()] {
		return nil, status.Error(grpccodes.NotFound, "no such lease, or one that does not expire")
	}
	delete(f.held, r.GetID())
	f.collected = r.GetSync()
	return &emptypb.Empty{}, nil
}
