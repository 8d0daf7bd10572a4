package bench

import (
	"context"
	"os"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	"github.com/containerd/containerd/api/types"
	transfertypes "github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// pull has containerd pull an image like `ctr images pull`, and unpack it for a snapshotter, or only fetch it if that
// is "".
func (s *suite) pull(ctx context.Context, image, snapshotter string) error {
	platform := &types.Platform{OS: "linux", Architecture: "amd64"}
	destination := &transfertypes.ImageStore{Name: image, Platforms: []*types.Platform{platform}, AllMetadata: true}
	if snapshotter != "" {
		destination.Unpacks = []*transfertypes.UnpackConfiguration{{Platform: platform, Snapshotter: snapshotter}}
	}
	source := &transfertypes.OCIRegistry{Reference: image, Resolver: &transfertypes.RegistryResolver{DefaultScheme: "http"}}
	from, err := pack(source)
	if err != nil {
		return err
	}
	to, err := pack(destination)
	if err != nil {
		return err
	}
	_, err = transferapi.NewTransferClient(s.conn).Transfer(ctx, &transferapi.TransferRequest{
		Source: from, Destination: to, Options: &transferapi.TransferOptions{},
	})
	return err
}

// pack packs the message with a type name like containerd's, without a host.
func pack(m proto.Message) (*anypb.Any, error) {
	value, err := proto.Marshal(m)
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: value}, err
}

// forget removes an image and its layers, also from the page cache.
func (s *suite) forget(image string) {
	_, err := imagesapi.NewImagesClient(s.conn).Delete(s.ctx, &imagesapi.DeleteImageRequest{Name: image, Sync: true})
	if !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		require.NoError(s.b, err)
	}
	s.drain()
	unix.Sync()
	require.NoError(s.b, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
}

// unpackParents makes sure that every snapshotter has an image to make containers from.
func (s *suite) unpackParents() {
	for _, t := range s.targets {
		if t.parent == "" {
			t.parent = s.unpack(t, s.images.Busybox)
		}
	}
}

// unpack pulls an image none of whose layers the snapshotter has, and returns its top layer.
func (s *suite) unpack(t *target, image string) string {
	before := s.layers(t)
	require.NoError(s.b, s.pull(s.ctx, image, t.name))
	after := s.layers(t)
	for key := range before {
		delete(after, key)
	}
	for _, parent := range s.layers(t) {
		delete(after, parent)
	}
	require.Len(s.b, after, 1)
	for key := range after {
		return key
	}
	return ""
}

// layers maps a snapshotter's committed snapshots to their parents.
func (s *suite) layers(t *target) map[string]string {
	found := make(map[string]string)
	require.NoError(s.b, t.Walk(s.ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			found[info.Name] = info.Parent
		}
		return nil
	}))
	return found
}

// benchPull pulls an image of 16 layers and unpacks it. The floor is the time of fetching it.
func benchPull(s *suite) {
	const row = "pull and unpack 16 layers"
	s.report.Note("Each pull starts without the image, its layers and the page cache. The floor is the time of fetching alone.")
	image := s.images.Layers16
	for range 3 {
		s.forget(image)
		s.time(row, Floor, func() error { return s.pull(s.ctx, image, "") })
	}
	s.inTurnSlow(3, 3, func(t *target) {
		s.forget(image)
		s.time(row, t.name, func() error { return s.pull(s.ctx, image, t.name) })
	})
	s.forget(image)
}
