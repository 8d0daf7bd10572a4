package differ

import (
	"context"
	"crypto/rand"
	"net"
	"os"
	"path/filepath"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	coreDiff "github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/thinsnap/thinsnap/internal/diff"
)

// contentStore is a containerd's content store with its leases, behind a socket.
type contentStore struct {
	leasesapi.UnimplementedLeasesServer
	manager leases.Manager
	db      *metadata.DB
	differ  *Differ
	// beforeAdd, unless it is nil, is called before each AddResource.
	beforeAdd func()
}

func (s *contentStore) Create(ctx context.Context, r *leasesapi.CreateRequest) (*leasesapi.CreateResponse, error) {
	l, err := s.manager.Create(ctx, leases.WithID(r.GetID()), leases.WithLabels(r.GetLabels()))
	return &leasesapi.CreateResponse{Lease: &leasesapi.Lease{ID: l.ID}}, errgrpc.ToGRPC(err)
}

func (s *contentStore) Delete(ctx context.Context, r *leasesapi.DeleteRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, errgrpc.ToGRPC(s.manager.Delete(ctx, leases.Lease{ID: r.GetID()}))
}

func (s *contentStore) AddResource(ctx context.Context, r *leasesapi.AddResourceRequest) (*emptypb.Empty, error) {
	if s.beforeAdd != nil {
		s.beforeAdd()
	}
	resource := leases.Resource{ID: r.GetResource().GetID(), Type: r.GetResource().GetType()}
	return &emptypb.Empty{}, errgrpc.ToGRPC(s.manager.AddResource(ctx, leases.Lease{ID: r.GetID()}, resource))
}

func newContentStore(t *testing.T) (context.Context, *contentStore) {
	t.Helper()
	dir := t.TempDir()
	blobs, err := local.NewStore(filepath.Join(dir, "content"))
	require.NoError(t, err)
	bolt, err := bbolt.Open(filepath.Join(dir, "meta.db"), 0o600, &bbolt.Options{NoSync: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bolt.Close()) })
	db := metadata.NewDB(bolt, blobs, nil)
	require.NoError(t, db.Init(t.Context()))
	s := &contentStore{db: db, manager: metadata.NewLeaseManager(db)}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	require.NoError(t, err)
	server := grpc.NewServer()
	leasesapi.RegisterLeasesServer(server, s)
	contentapi.RegisterContentServer(server, contentserver.New(db.ContentStore()))
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		server.Stop()
		require.NoError(t, <-served)
	})
	s.differ = New(nil, nil, func(context.Context) (*grpc.ClientConn, func(), error) {
		return conn, func() {}, nil
	}, Options{})
	return namespaces.WithNamespace(t.Context(), "k8s.io"), s
}

// write writes a layer with the file "new" of a directory.
func (s *contentStore) write(ctx context.Context, t *testing.T, dir string) (ocispec.Descriptor, error) {
	t.Helper()
	store, err := s.differ.open(ctx, "")
	require.NoError(t, err)
	defer store.release()
	change := sides{upper: diff.Volume{Root: dir}, listing: diff.Listing{
		Changes: []diff.Change{{Kind: fs.ChangeKindAdd, Path: "/new"}},
	}}
	p, stop := s.differ.watch(ctx)
	defer stop()
	config := coreDiff.Config{MediaType: ocispec.MediaTypeImageLayer}
	return s.differ.write(ctx, store, change, compression.Uncompressed, config, p)
}

// TestNamespaceOfTheSnapshot: a call without a namespace uses that of the snapshot, even if the
// snapshot belongs to a further client.
func TestNamespaceOfTheSnapshot(t *testing.T) {
	_, s := newContentStore(t)
	for _, key := range []string{"moby/1/box", "\xffk3s/moby/1/box"} {
		store, err := s.differ.open(t.Context(), key)
		require.NoError(t, err)
		namespace, err := namespaces.NamespaceRequired(store.ctx)
		require.NoError(t, err, "%q", key)
		require.Equal(t, "moby", namespace)
		store.release()
	}
}

// endLeases ends all leases. containerd keeps their content until the next collection.
func (s *contentStore) endLeases(ctx context.Context, t *testing.T) {
	t.Helper()
	all, err := s.manager.List(ctx)
	require.NoError(t, err)
	require.NotEmpty(t, all)
	for _, lease := range all {
		require.NoError(t, s.manager.Delete(ctx, lease))
	}
}

func (s *contentStore) collect(ctx context.Context, t *testing.T) {
	t.Helper()
	_, err := s.db.GarbageCollect(ctx)
	require.NoError(t, err)
}

// TestLayerIsKept: containerd keeps a layer during its lease, whether or not it had the layer
// before.
func TestLayerIsKept(t *testing.T) {
	for name, bytes := range map[string]int{"small": 3, "large": 3 * writeBytes} {
		for caller, id := range map[string]string{"without a lease": "", "with a lease": "caller"} {
			t.Run(name+" "+caller, func(t *testing.T) {
				ctx, s := newContentStore(t)
				dir, random := t.TempDir(), make([]byte, bytes)
				_, _ = rand.Read(random)
				require.NoError(t, os.WriteFile(filepath.Join(dir, "new"), random, 0o600))
				for _, before := range []string{"new", "in containerd already"} {
					ctx := ctx
					if id != "" {
						_, err := s.manager.Create(ctx, leases.WithID(id))
						require.NoError(t, err)
						ctx = leases.WithLease(ctx, id)
					}
					layer, err := s.write(ctx, t, dir)
					require.NoError(t, err)
					s.collect(ctx, t)
					_, err = s.db.ContentStore().Info(ctx, layer.Digest)
					require.NoError(t, err, before)
					all, err := s.manager.List(ctx)
					require.NoError(t, err)
					require.Len(t, all, 1)
					s.endLeases(ctx, t)
				}
				s.collect(ctx, t)
			})
		}
	}
}

// TestLayerIsCollectedBeforeItsLease: if containerd collects the layer that it had, the comparison
// is left to the next differ.
func TestLayerIsCollectedBeforeItsLease(t *testing.T) {
	ctx, s := newContentStore(t)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "new"), []byte("new"), 0o600))
	_, err := s.write(ctx, t, dir)
	require.NoError(t, err)
	s.endLeases(ctx, t)
	s.beforeAdd = func() { s.collect(ctx, t) }
	_, err = s.write(ctx, t, dir)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.ErrorAs(t, err, new(unwrittenError))
	statuses, err := s.db.ContentStore().ListStatuses(ctx)
	require.NoError(t, err)
	require.Empty(t, statuses)
	_, err = s.write(ctx, t, dir)
	require.NoError(t, err)
}
