package main

import (
	"context"
	"path/filepath"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
)

// namedSnapshotter has one snapshot, with the client's name.
type namedSnapshotter struct {
	snapshots.Snapshotter
	client string
}

func (s namedSnapshotter) Stat(context.Context, string) (snapshots.Info, error) {
	return snapshots.Info{Kind: snapshots.KindActive, Name: s.client}, nil
}

// TestServeSeveralClients: each client has its own socket with its own snapshots.
func TestServeSeveralClients(t *testing.T) {
	notified := systemd(t)
	cfg := testConfig(t)
	cfg.Clients = []config.Client{{Name: "k3s", Address: filepath.Join(cfg.Root, "k3s.sock")}}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	b := backend{open: func(context.Context, config.Config) (*service, error) {
		sv := &service{clients: make(map[string]served), reports: fakeReports{}, close: func() error { return nil }}
		for _, client := range cfg.AllClients() {
			sv.clients[client.Name] = served{snapshotter: namedSnapshotter{client: client.Name}}
		}
		return sv, nil
	}}
	go func() { ended <- serve(ctx, cfg, b) }()
	require.Equal(t, ready, told(t, notified))
	for _, client := range cfg.AllClients() {
		conn, err := grpc.NewClient("unix://"+client.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		info, err := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "thinsnap").Stat(t.Context(), "default/1/a")
		require.NoError(t, err)
		require.Equal(t, client.Name, info.Name)
		require.NoError(t, conn.Close())
	}
	activity, err := admin.NewClient(cfg.AdminAddress).Activity(t.Context())
	require.NoError(t, err)
	require.Equal(t, []admin.CallTotal{{Method: "Stat", Ended: 2, Seconds: activity.Totals[0].Seconds}}, activity.Totals)
	stop()
	require.NoError(t, <-ended)
	for _, client := range cfg.AllClients() {
		require.NoFileExists(t, client.Address)
	}
}

func TestRemoveClient(t *testing.T) {
	address := fakeDaemon(t)
	got := try(t, false, backend{}, "client", "remove", "--admin-address", address, "moby")
	require.Equal(t, exitUsage, got.code)
	require.Contains(t, got.err, `this removes the client "moby" with its 2 snapshots; to do it, add --yes`)
	require.Equal(t, "removed client moby with 2 snapshots\n",
		output(t, true, "client", "remove", "--admin-address", address, "--yes", "moby"))
	require.Contains(t, output(t, true, "client", "reset", "--admin-address", address, "k3s"), "Client k3s: none yet\n")
}

// TestKeyOfItsClient: containerd's own key does not have the client's name.
func TestKeyOfItsClient(t *testing.T) {
	for shown, own := range map[string]string{
		"default/1/a": "default/1/a", "@k3s/default/1/a": "default/1/a", "@/@a": "@a", "": "",
	} {
		require.Equal(t, own, ownKey(shown))
	}
}
