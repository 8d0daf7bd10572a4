package daemon

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/internal/clients"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
)

// TestClientIsRemoved removes a client in several interrupted attempts. Another client with the
// same keys loses nothing.
func TestClientIsRemoved(t *testing.T) {
	d, c := newDaemon(t)
	reopen := func(further ...config.Client) {
		t.Helper()
		require.NoError(t, d.Close())
		c.Clients = further
		var err error
		d, err = Open(t.Context(), c)
		require.NoError(t, err)
	}
	further := config.Client{Name: "k3s", Address: filepath.Join(t.TempDir(), "k3s.sock")}
	admit := func(client string) {
		t.Helper()
		require.NoError(t, d.Registry(client).Admit(t.Context(), clients.Call{
			Process: clients.Process{PID: os.Getpid(), StartTime: 1, BootID: client}, Proxy: "thinsnap",
		}))
	}
	reopen(further)
	admit(config.DefaultClient)
	admit("k3s")
	fill := func(space string) {
		t.Helper()
		sn, parent := d.snapshotter.In(space), ""
		for _, name := range []string{"ns/1/a", "ns/2/b", "ns/3/c"} {
			mounts, err := sn.Prepare(t.Context(), "new", parent)
			require.NoError(t, err)
			require.NoError(t, mount.WithTempMount(t.Context(), mounts, func(dir string) error {
				return os.WriteFile(filepath.Join(dir, filepath.Base(name)), []byte(space), 0o600)
			}))
			require.NoError(t, sn.Commit(t.Context(), name, "new"))
			parent = name
		}
		for i := range 12 {
			_, err := sn.Prepare(t.Context(), "ns/"+strconv.Itoa(4+i)+"/box", "ns/2/b")
			require.NoError(t, err)
		}
	}
	fill("")
	fill("k3s")
	mounts, err := d.snapshotter.In("k3s").Mounts(t.Context(), "ns/4/box")
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, mount.All(mounts, dir))
	mounted := true
	defer func() {
		if mounted {
			require.NoError(t, mount.UnmountAll(dir, 0))
		}
	}()
	_, err = d.RemoveClient(t.Context(), "k3s")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "still configured")
	reopen()
	for _, name := range []string{"default", "", "k3", "k3s-2", "K", "\xff"} {
		_, err = d.RemoveClient(t.Context(), name)
		require.Error(t, err, name)
	}
	_, err = d.RemoveClient(t.Context(), "k3s")
	require.ErrorContains(t, err, "is in use")
	info, err := d.Info(t.Context())
	require.NoError(t, err)
	require.Equal(t, info.Client.Snapshots, info.Clients[0].Snapshots, "unchanged")
	require.NoError(t, mount.UnmountAll(dir, 0))
	mounted = false

	whole := info.Client.Snapshots
	attempts := 0
	for err = context.Canceled; err != nil; attempts++ {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond<<min(attempts, 14))
		_, err = d.RemoveClient(ctx, "k3s")
		cancel()
		if attempts%3 == 0 {
			reopen()
		}
		info, infoErr := d.Info(t.Context())
		require.NoError(t, infoErr)
		require.Equal(t, whole, info.Client.Snapshots)
		require.Len(t, info.Clients, map[bool]int{true: 0, false: 1}[err == nil])
		kinds, _ := findings(t, d, false)
		require.Empty(t, kinds)
	}
	t.Logf("%d attempts", attempts)
	_, err = d.RemoveClient(t.Context(), "k3s")
	require.ErrorIs(t, err, errdefs.ErrNotFound)

	require.Eventually(t, func() bool {
		left := 0
		require.NoError(t, d.store.View(t.Context(), func(tx *metadata.Tx) (err error) {
			left, err = tx.TrashCount()
			return err
		}))
		return left == 0
	}, time.Minute, 10*time.Millisecond)
	require.Equal(t, []byte{4}, formatOf(t, c.Root), "versions with only one client can use the store")

	reopen(further)
	admit("k3s")
	require.Equal(t, []byte{5}, formatOf(t, c.Root))
	fill("k3s")
	info, err = d.Info(t.Context())
	require.NoError(t, err)
	require.Equal(t, whole, info.Client.Snapshots)
	require.Equal(t, whole, info.Clients[0].Snapshots)
	for _, space := range []string{"", "k3s"} {
		mounts, err := d.snapshotter.In(space).View(t.Context(), "look", "ns/3/c")
		require.NoError(t, err)
		require.NoError(t, mount.WithTempMount(t.Context(), mounts, func(dir string) error {
			for _, name := range []string{"a", "b", "c"} {
				text, err := os.ReadFile(filepath.Join(dir, name))
				require.NoError(t, err)
				require.Equal(t, space, string(text))
			}
			return nil
		}))
	}
	require.NoError(t, d.Close())
}

// formatOf returns the format of a root's store, which must not change meanwhile.
func formatOf(t *testing.T, root string) (version []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "metadata.db")
	content, err := os.ReadFile(filepath.Join(root, "metadata.db"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, content, 0o600))
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	require.NoError(t, err)
	require.NoError(t, db.View(func(tx *bolt.Tx) error {
		version = bytes.Clone(tx.Bucket([]byte("v1")).Bucket([]byte("meta")).Get([]byte("schema")))
		return nil
	}))
	require.NoError(t, db.Close())
	return version
}
