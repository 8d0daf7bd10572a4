package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// frame returns an HTTP/2 frame (RFC 9113, 4.1) of any type, perhaps with a wrong length.
func frame() []byte {
	payload := noise(rand.IntN(300))
	length := uint32(len(payload))
	if rand.IntN(20) == 0 {
		length = rand.Uint32N(1 << 24)
	}
	b := binary.BigEndian.AppendUint32(nil, length<<8|rand.Uint32N(12))
	b = append(b, byte(rand.Uint32()))
	b = binary.BigEndian.AppendUint32(b, rand.Uint32N(8))
	return append(b, payload...)
}

// call returns the frames of a call of a method, with a gRPC message that claims a length.
func call(t *testing.T, method string, length uint32, body []byte) []byte {
	t.Helper()
	var wire, fields bytes.Buffer
	wire.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(&wire, nil)
	require.NoError(t, framer.WriteSettings())
	encoder := hpack.NewEncoder(&fields)
	for _, field := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", method}, {":authority", "localhost"}, {"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		require.NoError(t, encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}))
	}
	require.NoError(t, framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: fields.Bytes(), EndHeaders: true}))
	data := append(binary.BigEndian.AppendUint32([]byte{0}, length), body...)
	require.NoError(t, framer.WriteData(1, false, data))
	return wire.Bytes()
}

const service = "/containerd.services.snapshots.v1.Snapshots/"

func TestGarbage(t *testing.T) {
	for name, message := range map[string]func() []byte{
		"noise":                     func() []byte { return noise(1 + rand.IntN(64<<10)) },
		"another protocol":          func() []byte { return []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") },
		"nothing":                   func() []byte { return nil },
		"half a preface":            func() []byte { return []byte(http2.ClientPreface[:rand.IntN(len(http2.ClientPreface))]) },
		"frames":                    func() []byte { return append([]byte(http2.ClientPreface), bytes.Join(randomFrames(), nil)...) },
		"a call of 4 GiB":           func() []byte { return call(t, service+"Prepare", math.MaxUint32, noise(100)) },
		"a call of nearly 16 MiB":   func() []byte { return call(t, service+"Prepare", 16<<20, noise(100)) },
		"a call that never goes on": func() []byte { return call(t, service+"Commit", 1000, noise(10)) },
		"a call of nonsense":        func() []byte { return call(t, service+"List", 100, noise(100)) },
	} {
		t.Run(name, func(t *testing.T) {
			g := newTarget(t)
			messages := make([][]byte, 100)
			for i := range messages {
				messages[i] = message()
			}
			hangUp := g.write(t, messages)
			g.requireServing(t)
			g.requireLittleMemory(t)
			hangUp()
			g.requireReleased(t)
		})
	}
}

func randomFrames() [][]byte {
	frames := make([][]byte, 20)
	for i := range frames {
		frames[i] = frame()
	}
	return frames
}

// verbatim is a codec for encoded messages.
type verbatim struct{}

func (verbatim) Name() string { return "proto" }

func (verbatim) Marshal(v any) ([]byte, error) { return v.([]byte), nil } //nolint:errcheck // every message is bytes

func (verbatim) Unmarshal([]byte, any) error { return nil }

func TestInvalidMessages(t *testing.T) {
	g := newTarget(t)
	conn := g.connect(t)
	invoke := func(method string, message []byte) codes.Code {
		return status.Code(conn.Invoke(t.Context(), method, message, nil, grpc.ForceCodec(verbatim{})))
	}
	for _, method := range []string{"/", "/x", "//", service, service + "Nothing", service + "prepare", "/other.Service/Prepare", "/" + string(noise(3))} {
		require.Contains(t, []codes.Code{codes.Unimplemented, codes.Internal, codes.Unknown}, invoke(method, nil), "%q", method)
	}
	for _, method := range snapshotsapi.Snapshots_ServiceDesc.Methods {
		for range 200 {
			// Any answer is fine, unless the server is gone.
			require.NotEqual(t, codes.Unavailable, invoke(service+method.MethodName, noise(rand.IntN(200))))
		}
		require.Equal(t, codes.ResourceExhausted, invoke(service+method.MethodName, make([]byte, 17<<20)))
	}
	require.NoError(t, conn.Close())
	g.requireReleased(t)
}

// TestAbsurdFields sends well-formed messages with absurd values.
func TestAbsurdFields(t *testing.T) {
	g := newTarget(t)
	conn := g.connect(t)
	client := snapshotsapi.NewSnapshotsClient(conn)
	never := &timestamppb.Timestamp{Seconds: math.MinInt64, Nanos: math.MinInt32}
	deep := string(bytes.Repeat([]byte("("), 1<<20))
	for name, do := range map[string]func() error{
		"no info": func() error {
			_, err := client.Update(t.Context(), &snapshotsapi.UpdateSnapshotRequest{})
			require.Equal(t, codes.InvalidArgument, status.Code(err))
			return err
		},
		"times": func() error {
			_, err := client.Update(t.Context(), &snapshotsapi.UpdateSnapshotRequest{
				Info: &snapshotsapi.Info{Name: "k", Kind: math.MaxInt32, CreatedAt: never, UpdatedAt: never},
			})
			return err
		},
		"mask": func() error {
			paths := make([]string, 100_000)
			for i := range paths {
				paths[i] = fmt.Sprint("labels.", i)
			}
			_, err := client.Update(t.Context(), &snapshotsapi.UpdateSnapshotRequest{
				Info: &snapshotsapi.Info{Name: "k"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths},
			})
			return err
		},
		"filters": func() error {
			list, err := client.List(t.Context(), &snapshotsapi.ListSnapshotsRequest{Filters: []string{deep, `name~="` + deep + `"`}})
			if err == nil {
				_, err = list.Recv()
			}
			return err
		},
		"another snapshotter": func() error {
			_, err := client.Prepare(t.Context(), &snapshotsapi.PrepareSnapshotRequest{Snapshotter: deep, Key: "k", Parent: "k"})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.NotEqual(t, codes.Unavailable, status.Code(do()))
			g.requireServing(t)
		})
	}
	require.NoError(t, conn.Close())
	g.requireReleased(t)
}

// TestManyCancelledCalls starts thousands of calls, and cancels each.
func TestManyCancelledCalls(t *testing.T) {
	g := newTarget(t)
	conn := g.connect(t)
	client := snapshotsapi.NewSnapshotsClient(conn)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 500 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(300))*time.Microsecond)
				_, _ = client.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Key: "k"})
				cancel()
			}
		})
	}
	all.Wait()
	g.requireLittleMemory(t)
	require.NoError(t, conn.Close())
	g.requireReleased(t)
}
