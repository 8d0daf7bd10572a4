package clients_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/thinsnap/thinsnap/internal/clients"
)

// otherSocket is the socket of a process that TestMain makes another containerd.
const otherSocket = "THINSNAP_TEST_OTHER_SOCKET"

func TestMain(m *testing.M) {
	if path := os.Getenv(buildkitSocket); path != "" {
		if err := serveBuildKit(path); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	if path := os.Getenv(otherSocket); path != "" {
		if err := serveOther(path); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func serveOther(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	introspectionapi.RegisterIntrospectionServer(server, introspection{})
	fmt.Println("listening")
	return server.Serve(l)
}

// Another containerd replaces the socket while thinsnap asks the client there.
func TestSocketPathOfAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	path, others := filepath.Join(dir, "containerd.sock"), filepath.Join(dir, "other")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), otherSocket+"="+others)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "listening\n", line)
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer l.Close()

	var told []string
	err = clients.Identify(t.Context(), clients.FindProcess(os.Getpid()), "thinsnap", clients.Report{
		Listens: func(bool) { _ = os.Rename(others, path) },
		Told: func(installation string) error {
			told = append(told, installation)
			return nil
		},
	})
	require.Empty(t, told, "process %d has told that", cmd.Process.Pid)
	require.ErrorContains(t, err, fmt.Sprintf("process %d (%s) listens on", cmd.Process.Pid, os.Args[0]))
}

// oneNamespace serves a containerd with one namespace.
type oneNamespace struct {
	namespacesapi.UnimplementedNamespacesServer
}

func (oneNamespace) List(context.Context, *namespacesapi.ListNamespacesRequest) (*namespacesapi.ListNamespacesResponse, error) {
	return &namespacesapi.ListNamespacesResponse{Namespaces: []*namespacesapi.Namespace{{Name: "k8s.io"}}}, nil
}

// largeList sends a hundred snapshots in one message of 5 MB; containerd sends as many.
type largeList struct {
	snapshotsapi.UnimplementedSnapshotsServer
	sent chan error
}

func (l largeList) List(_ *snapshotsapi.ListSnapshotsRequest, stream snapshotsapi.Snapshots_ListServer) error {
	m := &snapshotsapi.ListSnapshotsResponse{}
	for range 100 {
		labels := make(map[string]string)
		for i := range 12 {
			labels[fmt.Sprint("containerd.io/snapshot/label-", i)] = strings.Repeat("x", 4000)
		}
		m.Info = append(m.Info, &snapshotsapi.Info{Name: "snapshot", Labels: labels})
	}
	err := stream.Send(m)
	l.sent <- err
	return err
}

// One request is enough for snapshots with labels of any size.
func TestLargeList(t *testing.T) {
	b := newBench(t)
	server := grpc.NewServer()
	defer server.Stop()
	list := largeList{sent: make(chan error, 1000)}
	introspectionapi.RegisterIntrospectionServer(server, introspection{})
	namespacesapi.RegisterNamespacesServer(server, oneNamespace{})
	snapshotsapi.RegisterSnapshotsServer(server, list)
	listen(t, "containerd.sock", server.Serve)
	r := clients.New(b.store, b.space)
	defer r.Close()
	require.NoError(t, r.Admit(t.Context(), clients.Call{Process: clients.FindProcess(os.Getpid()), Proxy: "thinsnap"}))
	require.Eventually(t, func() bool { return clients.HasListed(r) || len(list.sent) > 1 }, time.Minute, time.Millisecond)
	require.Len(t, list.sent, 1, "times that containerd was asked for its list")
	require.NoError(t, <-list.sent)
}
