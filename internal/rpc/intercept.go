package rpc

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"strings"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/thinsnap/thinsnap/snapshotter/calllog"
)

// interceptor wraps every call.
type interceptor struct {
	logContext context.Context //nolint:containedctx // has the logger for the calls' contexts
	admission  Admission       // may be nil
	observer   Observer
	running    share // of unary calls that may wait for the pool
	reading    share // of unary calls that only read the store
}

func (i *interceptor) unary(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler,
) (any, error) {
	var resp any
	err := i.call(ctx, info.FullMethod, requestFields(req), func(ctx context.Context) (err error) {
		if strings.HasPrefix(info.FullMethod, "/"+diffapi.Diff_ServiceDesc.ServiceName+"/") {
			// Any containerd on the node may have this differ configured, and must get Unimplemented at once, to ask its
			// next one. Comparisons have a limit of their own.
			resp, err = handle(ctx, req)
			return err
		}
		if err := i.admit(ctx, req); err != nil {
			return errgrpc.ToGRPC(err)
		}
		if r, ok := req.(*snapshotsapi.UpdateSnapshotRequest); ok && r.GetInfo() == nil {
			// containerd's service would dereference the nil pointer.
			return status.Error(codes.InvalidArgument, "the update request has no snapshot info")
		}
		turn := i.running
		if readsOnly(info.FullMethod) {
			turn = i.reading
		}
		leave, err := turn.enter(ctx)
		if err != nil {
			return err
		}
		defer leave()
		resp, err = handle(ctx, req)
		return err
	})
	return resp, err
}

// turns limits running calls: it has room for one element per call.
type turns chan struct{}

// share has the turns of one server: its reserved ones, and those that all servers share.
type share struct{ reserved, shared turns }

// enter waits for a turn, until ctx ends. It prefers a reserved one.
func (s share) enter(ctx context.Context) (leave func(), err error) {
	select {
	case s.reserved <- struct{}{}:
		leave = func() { <-s.reserved }
	default:
		select {
		case s.reserved <- struct{}{}:
			leave = func() { <-s.reserved }
		case s.shared <- struct{}{}:
			leave = func() { <-s.shared }
		case <-ctx.Done():
		}
	}
	// select may have taken a turn although ctx has ended.
	if err := ctx.Err(); err != nil {
		if leave != nil {
			leave()
		}
		return nil, status.FromContextError(err).Err()
	}
	return leave, nil
}

// readsOnly reports whether a method only reads the store. Such calls do not wait for the others. (List is a stream,
// and takes no turn.)
func readsOnly(fullMethod string) bool { return path.Base(fullMethod) == "Stat" }

func (i *interceptor) stream(
	srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler,
) error {
	return i.call(stream.Context(), info.FullMethod, log.Fields{}, func(ctx context.Context) error {
		admit := func(req any) error { return i.admit(ctx, req) }
		// containerd's service does not convert the errors of List.
		return errgrpc.ToGRPC(handle(srv, &streamWithContext{stream, ctx, admit}))
	})
}

// streamWithContext replaces a stream's context, and admits its requests.
type streamWithContext struct {
	grpc.ServerStream
	ctx   context.Context //nolint:containedctx // a stream carries its context
	admit func(req any) error
}

// RecvMsg fails if the client may not make the request.
func (s *streamWithContext) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.admit(m)
}

func (s *streamWithContext) Context() context.Context { return s.ctx }

// SendMsg splits a long list: a hundred snapshots with large labels would exceed the client's limit for a message.
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

// listBytes is the size above which a list is split: half the default limit of gRPC clients. containerd's limit is 16
// MiB.
const listBytes = 2 << 20

// call runs a call, measures it, and logs one line, with the device that package calllog has recorded. The logger in
// the call's context has the fields of the request.
func (i *interceptor) call(
	ctx context.Context, fullMethod string, fields log.Fields, run func(context.Context) error,
) error {
	method := path.Base(fullMethod)
	fields["method"] = method
	ctx, served := calllog.With(ctx)
	ctx = log.WithLogger(ctx, log.G(i.logContext).WithFields(fields))
	key, _ := fields["key"].(string)
	end := i.observer.Begin(method, key)

	err := withoutPanic(ctx, func() error { return run(ctx) })

	code := status.Code(err)
	took := end(code.String())
	if device := served.Device(); device != "" {
		fields["device"] = device
	}
	fields["outcome"] = code.String()
	fields["duration"] = took.Round(time.Microsecond).String()
	line := log.G(i.logContext).WithFields(fields)
	if err != nil {
		line = line.WithField("error", shorten(err.Error()))
	}
	line.Log(level(method, code), "call")
	return err
}

// withoutPanic runs f, and turns a panic into an error: a bug in one call must not end the daemon.
func withoutPanic(ctx context.Context, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.G(ctx).WithField("stack", string(debug.Stack())).Errorf("panic: %v", p)
			err = status.Errorf(codes.Internal, "panic in the snapshotter: %v", p)
		}
	}()
	return f()
}

// level returns debug for calls that change no snapshot, unless they fail: containerd makes them all the time.
func level(method string, code codes.Code) log.Level {
	switch code {
	case codes.OK, codes.NotFound, codes.AlreadyExists, codes.Canceled:
	case codes.Unimplemented: // the differ's: containerd asks the next one
		return log.DebugLevel
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

// shorten cuts a long key or message, so that a client cannot fill the log.
func shorten(text string) string {
	const limit = 2048
	if len(text) <= limit {
		return text
	}
	return fmt.Sprintf("%s… (%d bytes)", strings.ToValidUTF8(text[:limit], ""), len(text))
}

// requestFields returns the log fields that identify the request's snapshot.
func requestFields(req any) log.Fields {
	fields := log.Fields{}
	set := func(name, value string) {
		if value != "" {
			fields[name] = shorten(value)
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
