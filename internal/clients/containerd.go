package clients

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// errNoContainerd is returned for a process that has no socket of containerd.
var errNoContainerd = errors.New("it has no socket of containerd")

var errNoUUID = errors.New("the answer has no UUID")

// identify asks a containerd for its UUID, then for a list of its snapshots. For that list containerd
// asks thinsnap about each, and so shows which keys it knows. A buildkitd is asked for its worker's id.
//
// It has no time limit: the process may have many snapshots, and the connection ends with the process.
func identify(ctx context.Context, p Process, proxy string, to report) (err error) {
	conn, installation, err := connect(ctx, p, to.listens)
	if err != nil && isBuildKit(p) {
		worker, workerErr := askWorker(ctx, p)
		if workerErr == nil {
			return to.told(worker)
		}
		err = fmt.Errorf("%w; %w", err, workerErr)
	}
	if err != nil {
		return fmt.Errorf("ask %v for its identity: %w", p, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := to.told(installation); err != nil {
		return err
	}
	all, err := namespacesapi.NewNamespacesClient(conn).List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return fmt.Errorf("ask %v for its namespaces: %w", p, err)
	}
	for _, namespace := range all.GetNamespaces() {
		if err := list(namespaces.WithNamespace(ctx, namespace.GetName()), conn, proxy); err != nil {
			return fmt.Errorf("ask %v for its snapshots in namespace %s: %w", p, namespace.GetName(), err)
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

// Dial connects to a containerd, on a socket on which the process listens.
func Dial(ctx context.Context, p Process) (*grpc.ClientConn, error) {
	conn, _, err := connect(ctx, p, func(bool) {})
	if err != nil {
		return nil, fmt.Errorf("connect to %v: %w", p, err)
	}
	return conn, nil
}

// connect connects to the containerd socket on which a process listens, and returns containerd's
// UUID. It calls listens with whether the process may have such a socket.
func connect(ctx context.Context, p Process, listens func(bool)) (*grpc.ClientConn, string, error) {
	addresses, err := addressesOf(p, "containerd")
	if err != nil {
		listens(false)
		return nil, "", err
	}
	failed, asked, may := errNoContainerd, false, false
	for _, address := range addresses {
		conn, err := dial(ctx, address, p)
		if err != nil {
			failed = fmt.Errorf("%w; %w", failed, err)
			continue
		}
		_ = conn.Close()
		listens(true) // before the answer, which can take long
		client, installation, err := askUUID(ctx, address, p)
		if err == nil {
			return client, installation, nil
		}
		if !asked {
			failed, asked = err, true
		} else {
			failed = fmt.Errorf("%w; %w", failed, err)
		}
		may = may || status.Code(err) != codes.Unimplemented
	}
	listens(may)
	return nil, "", failed
}

// newConn returns a connection to an address that is verified to be the process's.
func newConn(address string, p Process) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+filepath.Base(address),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// containerd sends a hundred snapshots in a message, with labels of any size.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx, address, p) }))
}

func askUUID(ctx context.Context, address string, p Process) (*grpc.ClientConn, string, error) {
	conn, err := newConn(address, p)
	if err != nil {
		return nil, "", err
	}
	server, err := introspectionapi.NewIntrospectionClient(conn).Server(ctx, &emptypb.Empty{})
	if err == nil && server.GetUUID() != "" {
		return conn, server.GetUUID(), nil
	}
	_ = conn.Close()
	return nil, "", fmt.Errorf("%s: %w", address, cmp.Or(err, errNoUUID))
}

// dial connects to a socket on which the process listens: the peer of a connection is the process
// that called listen(2) (unix(7)). It checks each connection, because another process may have
// replaced the socket meanwhile.
func dial(ctx context.Context, address string, p Process) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", address)
	if err != nil {
		return nil, err
	}
	peer, err := Peer(conn)
	if err == nil && !peer.Same(p) {
		err = fmt.Errorf("%v listens on %s", peer, address)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// addressesOf returns the addresses of the sockets that socketPaths finds: each path in the
// process's root and in thinsnap's. thinsnap needs the latter if it has fewer capabilities than the
// process, and so cannot use the former (proc(5)).
func addressesOf(p Process, word string) ([]string, error) {
	paths, err := socketPaths(p.PID, word)
	var addresses []string
	for _, path := range paths {
		for _, root := range []string{fmt.Sprintf("/proc/%d/root", p.PID), "/"} {
			addresses = append(addresses, filepath.Join(root, path))
		}
	}
	return addresses, err
}

// socketPaths returns the sockets in the network namespace of a process that have a listener and a
// word, such as "containerd", in their path. A connection to any other socket could start a
// service.
func socketPaths(pid int, word string) ([]string, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/net/unix", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const (
		flags     = 3          // column of the flags, in hexadecimal
		path      = 7          // column of the path; missing for a socket without a name
		listening = "00010000" // __SO_ACCEPTCON (include/uapi/linux/net.h)
	)
	var paths []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		columns := strings.Fields(lines.Text())
		if len(columns) != path+1 || columns[flags] != listening || !strings.HasPrefix(columns[path], "/") {
			continue
		}
		if name := columns[path]; strings.Contains(name, word) && strings.HasSuffix(name, ".sock") {
			paths = append(paths, name)
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths), lines.Err()
}
