package clients_test

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/thinsnap/thinsnap/internal/clients"
)

// buildkitSocket is the socket of a process that TestMain makes a buildkitd, and buildkitWorker the id of its worker.
const (
	buildkitSocket = "THINSNAP_TEST_BUILDKIT_SOCKET"
	buildkitWorker = "THINSNAP_TEST_BUILDKIT_WORKER"
)

func field(number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), value)
}

// workers returns a ListWorkersResponse with workers of both kinds. It also has an integer field and a message that
// thinsnap does not know.
func workers(oci string) []byte {
	record := func(id, executor string) []byte {
		label := func(k, v string) []byte { return field(2, append(field(1, []byte(k)), field(2, []byte(v))...)) }
		worker := append(field(1, []byte(id)), label("org.mobyproject.buildkit.worker.hostname", "oci")...)
		worker = append(worker, label("org.mobyproject.buildkit.worker.executor", executor)...)
		worker = protowire.AppendVarint(protowire.AppendTag(worker, 9, protowire.VarintType), 7)
		return field(1, append(worker, field(3, field(1, []byte("amd64")))...))
	}
	return append(record(oci, "oci"), record("of a containerd", "containerd")...)
}

// message is an encoded message.
type message []byte

type messages struct{}

func (messages) Name() string { return "proto" }

func (messages) Marshal(v any) ([]byte, error) { return v.(message), nil } //nolint:errcheck // it is one

func (messages) Unmarshal([]byte, any) error { return nil }

func newBuildKit(worker string) *grpc.Server {
	server := grpc.NewServer(grpc.ForceServerCodec(messages{}))
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "moby.buildkit.v1.Control", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: "ListWorkers",
			Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				return message(workers(worker)), decode(new(message))
			},
		}},
	}, struct{}{})
	return server
}

func serveBuildKit(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	return newBuildKit(os.Getenv(buildkitWorker)).Serve(l)
}

// buildkitd starts a process of that name, with a worker, as a client of a bench that asks it like thinsnap.
func (b *bench) buildkitd(t *testing.T, worker string) *containerd {
	t.Helper()
	clients.SetIdentify(b.Registry, clients.Identify)
	dir := t.TempDir()
	program := filepath.Join(dir, "buildkitd")
	self, err := os.Open("/proc/self/exe")
	require.NoError(t, err)
	defer self.Close()
	file, err := os.OpenFile(program, os.O_CREATE|os.O_WRONLY, 0o700)
	require.NoError(t, err)
	_, err = io.Copy(file, self)
	require.NoError(t, err)
	require.NoError(t, file.Close())
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), buildkitSocket+"="+filepath.Join(dir, "buildkitd.sock"), buildkitWorker+"="+worker)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	c := &containerd{bench: b, cmd: cmd, proxy: "thinsnap"}
	t.Cleanup(c.end)
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "listening\n", line)
	return c
}

// A buildkitd tells the id of its worker. After a restart it may remove its own snapshots at once, and another one's
// never.
func TestBuildKit(t *testing.T) {
	one := newBench(t)
	other := one.of(t, "k3s")
	for b, worker := range map[*bench]string{one: "one", other: "other"} {
		c := b.buildkitd(t, worker)
		for _, key := range []string{"buildkit/1/" + worker, "buildkit/2/sha256:1"} {
			c.prepare(t, key, "")
		}
		b.await(t, worker)
		c.end()
	}
	again := one.buildkitd(t, "one")
	again.prepare(t, "buildkit/3/new", "")
	one.await(t, "one")
	require.Eventually(t, func() bool { return clients.HasListed(one.Registry) }, time.Minute, time.Millisecond)
	require.NoError(t, again.sn(t).Remove(t.Context(), "buildkit/1/one"))
	again.end()

	exchanged := one.buildkitd(t, "other")
	require.NoError(t, exchanged.admit(t.Context()))
	one.await(t, "other")
	sn := exchanged.sn(t)
	_, err := sn.Stat(t.Context(), "buildkit/2/sha256:1")
	require.NoError(t, err, "both have it")
	exchanged.prepare(t, "buildkit/50/new", "")
	for _, key := range []string{"buildkit/2/sha256:1", "buildkit/3/new"} {
		requireRefused(t, sn.Remove(t.Context(), key), "is kept")
	}
	exchanged.end()
	one.has(t, "buildkit/2/sha256:1", "buildkit/3/new")
}

// An answer that is not buildkitd's has no worker.
func TestWorkerOfBuildKit(t *testing.T) {
	id, err := clients.WorkerOf(workers("one"))
	require.NoError(t, err)
	require.Equal(t, "one", id)
	for _, none := range [][]byte{nil, workers(""), field(1, nil), field(2, workers("one")), field(1, field(1, []byte("one")))} {
		id, err = clients.WorkerOf(none)
		require.NoError(t, err)
		require.Empty(t, id)
	}
	// Encoded by BuildKit 0.19 for a worker "abc" with two labels.
	encoded, err := hex.DecodeString("0a3e0a03616263122f0a286f72672e6d6f627970726f6a6563742e6275696c646b69742e776f726b6572" +
		"2e6578656375746f7212036f636912060a0178120179")
	require.NoError(t, err)
	id, err = clients.WorkerOf(encoded)
	require.NoError(t, err)
	require.Equal(t, "abc", id)
	whole := workers("one")
	for n := range whole {
		if id, err = clients.WorkerOf(whole[:n]); err == nil {
			require.Contains(t, []string{"", "one"}, id)
		}
	}
	_, err = clients.AskWorker(t.Context(), clients.FindProcess(os.Getpid()))
	require.ErrorContains(t, err, "no id of a BuildKit worker")
}

func FuzzWorkerOfBuildKit(f *testing.F) {
	f.Add(workers("one"))
	f.Fuzz(func(_ *testing.T, response []byte) { _, _ = clients.WorkerOf(response) })
}
