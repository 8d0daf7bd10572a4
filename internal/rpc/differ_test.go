package rpc

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/thinsnap/thinsnap/internal/clients"
)

// recording is a comparer that records its callers.
type recording struct{ callers []clients.Process }

func (r *recording) Compare(
	ctx context.Context, lower, _ []mount.Mount, _ ...diff.Opt,
) (ocispec.Descriptor, error) {
	r.callers = append(r.callers, Caller(ctx))
	if len(lower) != 1 {
		return ocispec.Descriptor{}, errdefs.ErrNotImplemented
	}
	return ocispec.Descriptor{MediaType: lower[0].Type}, nil
}

// Any process may ask the differ, not only the store's client. Each containerd that has it configured asks it for each
// layer that it unpacks, and must be sent to the next differ at once.
func TestDifferLeavesToTheNext(t *testing.T) {
	for name, comparer := range map[string]diff.Comparer{"without a comparer": nil, "with one": &recording{}} {
		t.Run(name, func(t *testing.T) {
			lines := &lines{}
			captureLog(t, lines)
			admission, outcomes := &refusing{}, &outcomes{}
			address := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", address)
			require.NoError(t, err)
			server := NewServer(t.Context(), unreachable{t: t}, comparer, admission, outcomes, NewLimits(1))
			served := make(chan error, 1)
			go func() { served <- server.Serve(l) }()
			conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
			require.NoError(t, err)
			differ, ok := diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(interface {
				diff.Applier
				diff.Comparer
			})
			require.True(t, ok)

			_, err = differ.Apply(t.Context(), ocispec.Descriptor{}, nil)
			require.ErrorIs(t, err, errdefs.ErrNotImplemented)
			_, err = differ.Compare(t.Context(), nil, nil)
			require.ErrorIs(t, err, errdefs.ErrNotImplemented)
			want := []string{"Apply Unimplemented", "Diff Unimplemented"}
			mounts := []mount.Mount{{Type: "ext4"}}
			descriptor, err := differ.Compare(t.Context(), mounts, mounts)
			if r, ok := comparer.(*recording); ok {
				require.NoError(t, err)
				require.Equal(t, "ext4", descriptor.MediaType)
				require.Len(t, r.callers, 2)
				require.Equal(t, os.Getpid(), r.callers[1].PID)
				want = append(want, "Diff OK")
			} else {
				require.ErrorIs(t, err, errdefs.ErrNotImplemented)
				want = append(want, "Diff Unimplemented")
			}
			require.Empty(t, admission.calls)
			require.True(t, server.Stop(t.Context()))
			require.NoError(t, errors.Join(<-served, conn.Close()))
			require.Equal(t, want, outcomes.all())
			for _, line := range lines.parsed(t) {
				require.NotEqual(t, "error", line["level"], "%v", line)
			}
		})
	}
}
