package rpc

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"strings"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/thinsnap/thinsnap/snapshotter/calllog"
)

// interceptor stands between gRPC and the snapshotter.
type interceptor struct {
	logContext context.Context //nolint:containedctx // holds the logger that every call's context is given
	observer   Observer
	turns      chan struct{} // has one for each running call that does something
}

func (i *interceptor) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	var resp any
	err := i.call(ctx, info.FullMethod, requestFields(req), func(ctx context.Context) (err error) {
		if r, ok := req.(*snapshotsapi.UpdateSnapshotRequest); ok && r.GetInfo() == nil {
			// containerd's service would look into it.
			return status.Error(codes.InvalidArgument, "an update needs the info of a snapshot")
		}
		if !readsOnly(info.FullMethod) {
			leave, err := i.takeTurn(ctx)
			if err != nil {
				return err
			}
			defer leave()
		}
		resp, err = handle(ctx, req)
		return err
	})
	return resp, err
}

// takeTurn waits until fewer calls run, or ctx ends.
func (i *interceptor) takeTurn(ctx context.Context) (leave func(), err error) {
	select {
	case i.turns <- struct{}{}:
		leave = func() { <-i.turns }
	case <-ctx.Done():
	}
	// Both may have come at once.
	if err := ctx.Err(); err != nil {
		if leave != nil {
			leave()
		}
		return nil, status.FromContextError(err).Err()
	}
	return leave, nil
}

// readsOnly tells whether a call looks at the store alone: it waits for nobody, and nobody should wait for it.
func readsOnly(fullMethod string) bool {
	switch path.Base(fullMethod) {
	case "Stat", "List":
		return true
	default:
		return false
	}
}

func (i *interceptor) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return i.call(stream.Context(), info.FullMethod, log.Fields{}, func(ctx context.Context) error {
		return handle(srv, &streamWithContext{stream, ctx})
	})
}

// streamWithContext is a stream with another context than the one it came with.
type streamWithContext struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // a stream carries its context
}

func (s *streamWithContext) Context() context.Context { return s.ctx }

// SendMsg sends a list in as many messages as it takes: a hundred snapshots with large labels are more than a client reads.
func (s *streamWithContext) SendMsg(m any) error {
	list, ok := m.(*snapshotsapi.ListSnapshotsResponse)
	if !ok || len(list.GetInfo()) < 2 || proto.Size(list) <= listBytes {
		return s.ServerStream.SendMsg(m)
	}
	half := len(list.GetInfo()) / 2
	for _, part := range [][]*snapshotsapi.Info{list.GetInfo()[:half], list.GetInfo()[half:]} {
		if err := s.SendMsg(&snapshotsapi.ListSnapshotsResponse{Info: part}); err != nil {
			return err
		}
	}
	return nil
}

// listBytes is from when on a list is parted: half of what gRPC's clients read by default. containerd reads 16 MiB.
const listBytes = 2 << 20

// call runs one call, measures it and writes its line. The call's context has a logger with the fields of its request.
// The device that run sets with package calllog is in the line.
func (i *interceptor) call(ctx context.Context, fullMethod string, fields log.Fields, run func(context.Context) error) error {
	method := path.Base(fullMethod)
	fields["method"] = method
	ctx, served := calllog.With(ctx)
	ctx = log.WithLogger(ctx, log.G(i.logContext).WithFields(fields))
	key, _ := fields["key"].(string)
	end := i.observer.Begin(method, key)
	started := time.Now()

	err := recovered(ctx, func() error { return run(ctx) })

	code := status.Code(err)
	end(code.String())
	if device := served.Device(); device != "" {
		fields["device"] = device
	}
	fields["outcome"] = code.String()
	fields["duration"] = time.Since(started).Round(time.Microsecond).String()
	line := log.G(i.logContext).WithFields(fields)
	if err != nil {
		line = line.WithField("error", shortened(err.Error()))
	}
	line.Log(level(method, code), "call")
	return err
}

// recovered runs f and turns a panic into an error: one call's fault must not take the mounts of all others away.
func recovered(ctx context.Context, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.G(ctx).WithField("stack", string(debug.Stack())).Errorf("panic: %v", p)
			err = status.Errorf(codes.Internal, "panic in the snapshotter: %v", p)
		}
	}()
	return f()
}

// level keeps what happens all the time at debug: reading, and asking for things that need not be there.
func level(method string, code codes.Code) log.Level {
	switch code {
	case codes.OK, codes.NotFound, codes.AlreadyExists, codes.Canceled:
	default:
		return log.ErrorLevel
	}
	switch method {
	case "Stat", "Mounts", "List", "Usage":
		return log.DebugLevel
	default:
		return log.InfoLevel
	}
}

// shortened keeps what a client sends from filling the log: no key or message that is meant well is as long.
func shortened(text string) string {
	const most = 2048
	if len(text) <= most {
		return text
	}
	return fmt.Sprintf("%s… (%d bytes)", strings.ToValidUTF8(text[:most], ""), len(text))
}

// requestFields says which snapshot a request is about.
func requestFields(req any) log.Fields {
	fields := log.Fields{}
	set := func(name, value string) {
		if value != "" {
			fields[name] = shortened(value)
		}
	}
	if r, ok := req.(interface{ GetKey() string }); ok {
		set("key", r.GetKey())
	}
	if r, ok := req.(interface{ GetParent() string }); ok {
		set("parent", r.GetParent())
	}
	if r, ok := req.(interface{ GetName() string }); ok {
		set("name", r.GetName())
	}
	if r, ok := req.(*snapshotsapi.UpdateSnapshotRequest); ok {
		set("key", r.GetInfo().GetName())
	}
	return fields
}
