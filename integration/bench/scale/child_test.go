package scale

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest/bulk"
	"github.com/thinsnap/thinsnap/internal/rpc"
	"github.com/thinsnap/thinsnap/internal/unixsocket"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// rootVariable makes the test program a daemon that serves this root directory.
const rootVariable = "THINSNAP_SCALE_ROOT"

func storePath(root string) string  { return filepath.Join(root, "metadata.db") }
func socketPath(root string) string { return filepath.Join(root, "thinsnap.sock") }
func adminPath(root string) string  { return filepath.Join(root, "admin.sock") }

func TestMain(m *testing.M) {
	root := os.Getenv(rootVariable)
	if root == "" {
		os.Exit(m.Run())
	}
	if err := serve(context.Background(), root); err != nil {
		log.L.Fatal(err)
	}
}

// counts are a daemon's own counters.
type counts struct {
	Store metadata.Stats
	Heap  uint64 // bytes in use after a garbage collection
}

// serve is `thinsnap serve` with a pool that takes no time. It answers each line of standard input with its counts, and
// stops in an orderly way at the end of input.
func serve(ctx context.Context, root string) (err error) {
	store, err := metadata.Open(storePath(root), metadata.Options{})
	if err != nil {
		return err
	}
	sn, err := openSnapshotter(ctx, store, root)
	if err != nil {
		return errors.Join(err, store.Close())
	}
	var unasked struct{ admin.Backend } // only profiles are requested
	metrics := admin.NewMetrics(unasked, "", "")
	operator := admin.NewServer(ctx, unasked, admin.Daemon{Root: root, StartedAt: time.Now()}, metrics, admin.NewRecorder())
	containerd := rpc.NewServer(ctx, sn, nil, nil, metrics, rpc.NewLimits(1))
	defer func() {
		containerd.Stop(ctx)
		err = errors.Join(err, operator.Shutdown(ctx), sn.Close())
	}()
	if err := listen(ctx, adminPath(root), operator.Serve); err != nil {
		return err
	}
	if err := listen(ctx, socketPath(root), containerd.Serve); err != nil {
		return err
	}

	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		runtime.GC()
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		if err := json.NewEncoder(os.Stdout).Encode(counts{store.Stats(), memory.HeapAlloc}); err != nil {
			return err
		}
	}
	return lines.Err()
}

func listen(ctx context.Context, path string, serve func(net.Listener) error) error {
	l, err := unixsocket.Listen(ctx, path)
	if err != nil {
		return err
	}
	go func() {
		if err := serve(l); err != nil {
			log.L.Fatal(err)
		}
	}()
	return nil
}

func openSnapshotter(ctx context.Context, store *metadata.Store, root string) (*snapshotter.Snapshotter, error) {
	var remembered metadata.PoolRecord
	if err := store.View(ctx, func(tx *metadata.Tx) (err error) {
		remembered, err = tx.Pool()
		return err
	}); err != nil {
		return nil, err
	}
	c := config.Default()
	if uint64(c.Filesystem.BaseSize) != bulk.BaseBytes {
		return nil, fmt.Errorf("the store has snapshots of %d bytes, and the default is %d", bulk.BaseBytes, c.Filesystem.BaseSize)
	}
	p := bulk.NewPool(remembered.TransactionID)
	return snapshotter.New(ctx, snapshotter.Config{
		Filesystem:     c.Filesystem.Type,
		BaseBytes:      uint64(c.Filesystem.BaseSize),
		MkfsOptions:    c.Filesystem.MkfsOptions,
		MountOptions:   c.Filesystem.MountOptions,
		MountDir:       filepath.Join(root, "mounts"),
		MinFreePercent: uint64(c.Pool.MinFreeSpace),
		Discard:        c.Pool.DiscardOnRemove,
	}, store, p, p)
}
