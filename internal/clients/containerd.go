package clients

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
)

// identifyTime limits how long a client is asked for its identity.
const identifyTime = 30 * time.Second

// errNoContainerd is returned for a process that has no socket of containerd.
var errNoContainerd = errors.New("it has no socket of containerd")

// identify asks a containerd for the UUID that it keeps in its data, and calls found with it. Then it
// has containerd list its snapshots, for which containerd asks thinsnap for each of them: so it shows
// what it knows.
func identify(ctx context.Context, p Process, proxy string, found func(installation string)) (err error) {
	conn, err := connect(ctx, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	server, err := introspectionapi.NewIntrospectionClient(conn).Server(ctx, &emptypb.Empty{}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("ask %v for its identity: %w", p, err)
	}
	found(server.GetUUID())
	all, err := namespacesapi.NewNamespacesClient(conn).List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return fmt.Errorf("ask %v for its name spaces: %w", p, err)
	}
	for _, namespace := range all.GetNamespaces() {
		if err := list(namespaces.WithNamespace(ctx, namespace.GetName()), conn, proxy); err != nil {
			return fmt.Errorf("ask %v for its snapshots in name space %s: %w", p, namespace.GetName(), err)
		}
	}
	return nil
}

func list(ctx context.Context, conn *grpc.ClientConn, proxy string) error {
	stream, err := snapshotsapi.NewSnapshotsClient(conn).List(ctx, &snapshotsapi.ListSnapshotsRequest{Snapshotter: proxy})
	for err == nil {
		_, err = stream.Recv()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// connect connects to the socket of containerd that a process listens on.
func connect(ctx context.Context, p Process) (*grpc.ClientConn, error) {
	paths, err := containerdSockets(p.PID)
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		// The path as the process has it is not readable for a thinsnap with fewer capabilities
		// (proc(5)), which then is in its mount name space.
		for _, root := range []string{fmt.Sprintf("/proc/%d/root", p.PID), "/"} {
			if address := filepath.Join(root, path); answers(ctx, address, p) {
				return grpc.NewClient("passthrough:///containerd",
					grpc.WithTransportCredentials(insecure.NewCredentials()),
					grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
						return (&net.Dialer{}).DialContext(ctx, "unix", address)
					}))
			}
		}
	}
	return nil, errNoContainerd
}

// answers returns whether the process listens on a socket. The peer of a connection is the process
// that called listen(2) (unix(7)).
func answers(ctx context.Context, address string, p Process) bool {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", address)
	if err != nil {
		return false
	}
	defer conn.Close()
	peer, err := Peer(conn)
	return err == nil && peer.same(p)
}

// containerdSockets returns the sockets in the network name space of a process that may be
// containerd's: those with a listener and "containerd" in their path. Others are not
// connected to, for that may start a service.
func containerdSockets(pid int) ([]string, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/net/unix", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const (
		flags     = 3          // the column, in hexadecimal
		path      = 7          // the column; missing without a name
		listening = "00010000" // __SO_ACCEPTCON (include/uapi/linux/net.h)
	)
	var paths []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		columns := strings.Fields(lines.Text())
		if len(columns) != path+1 || columns[flags] != listening || !strings.HasPrefix(columns[path], "/") {
			continue
		}
		if name := columns[path]; strings.Contains(name, "containerd") && strings.HasSuffix(name, ".sock") {
			paths = append(paths, name)
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths), lines.Err()
}
