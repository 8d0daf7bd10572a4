package snapshotter_test

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest/fsck"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// places are the directories for the parts of a test's host; "" is a new one.
type places struct{ root, data, metadata string }

// faultConfig is the configuration of a host with faults, without spares.
func faultConfig() snapshotter.Config {
	return snapshotter.Config{Filesystem: filesystem.Ext4, BaseBytes: 32 << 20, Discard: true}
}

// newFaultHost makes a host on a pool of the given sizes in bytes, with the store and the pool's files in
// the given places. The test must repair their disks before it ends.
func newFaultHost(t *testing.T, at places, config snapshotter.Config, dataBytes, metadataBytes uint64) (context.Context, *host) {
	t.Helper()
	ctx := namespaces.WithNamespace(t.Context(), "test")
	for _, dir := range []*string{&at.root, &at.data, &at.metadata} {
		if *dir == "" {
			*dir = t.TempDir()
		}
	}
	name := "fault-" + strings.ToLower(filepath.Base(filepath.Dir(at.root)))
	h := &host{root: at.root, config: poolConfig(at.root, name, dataBytes, metadataBytes)}
	var err error
	h.control, err = devmapper.Open()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.control.Close()) })
	h.recordPool(t, metadata.LoopFiles{DataFile: filepath.Join(at.data, "data"), MetadataFile: filepath.Join(at.metadata, "metadata")})
	t.Cleanup(func() { h.takeDown(t) })
	require.NoError(t, h.open(ctx, config))
	return ctx, h
}

// recordPool records in the store that the pool has these files.
func (h *host) recordPool(t *testing.T, files metadata.LoopFiles) {
	t.Helper()
	store, err := metadata.Open(filepath.Join(h.root, "metadata.db"), metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.SetPool(metadata.PoolRecord{
			ID: rand.Text(), Mode: metadata.ModeLoop, Name: h.config.Pool.Name, BlockSize: uint64(h.config.Pool.BlockSize), Loop: files,
		})
	}))
	require.NoError(t, store.Close())
}

// takeDown removes all of the pool from the kernel, in any state.
func (h *host) takeDown(t *testing.T) {
	if h.Snapshotter != nil {
		if err := h.Close(); err != nil {
			t.Logf("close: %v", err)
		}
	}
	if h.pool == nil {
		return
	}
	h.checkLayers(t)
	require.Eventually(t, func() bool { return h.pool.Close(context.Background()) == nil }, 10*time.Second, 50*time.Millisecond)
}

// checkLayers checks every committed layer, if store and pool are readable.
func (h *host) checkLayers(t *testing.T) {
	ctx := context.Background()
	status, err := h.pool.Status(ctx)
	if err != nil || status.Mode == thin.ModeFail || status.Mode == thin.ModeError {
		return
	}
	store, err := metadata.Open(filepath.Join(h.root, "metadata.db"), metadata.Options{LockTimeout: time.Second})
	if err != nil {
		t.Logf("store: %v", err)
		return
	}
	defer store.Close()
	assert.NoError(t, fsck.Store(ctx, store, h.pool))
}

// noSpaceTimeout sets after how many seconds the kernel fails the writes that a full pool holds back.
func noSpaceTimeout(t *testing.T, seconds string) {
	t.Helper()
	const file = "/sys/module/dm_thin_pool/parameters/no_space_timeout"
	before, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, []byte(seconds), 0o644))
	t.Cleanup(func() { require.NoError(t, os.WriteFile(file, before, 0o644)) })
}

func (h *host) mode(t *testing.T) thin.Mode {
	t.Helper()
	status, err := h.pool.Status(context.Background())
	require.NoError(t, err)
	return status.Mode
}
