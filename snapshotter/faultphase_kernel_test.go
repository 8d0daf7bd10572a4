package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/faulty"
	"github.com/thinsnap/thinsnap/internal/dmtest/fsck"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// phases counts the phases of an unpack, and makes the disk fail in one of them. Each call of Commit to the
// kernel begins a phase.
type phases struct {
	snapshotter.Pool
	t          *testing.T
	disk       *faulty.Device
	volume     thin.ID // the volume of a running Commit, or 0
	at, failAt int
}

func (p *phases) next() {
	if p.at == p.failAt {
		p.disk.Heal(p.t)
	}
	if p.at++; p.at != p.failAt {
		return
	}
	if p.volume == 0 {
		p.disk.FailWrites(p.t) // the client would notice failed reads
	} else {
		p.disk.Fail(p.t)
	}
}

func (p *phases) ofCommit(id thin.ID) {
	if id == p.volume {
		p.next()
	}
}

func (p *phases) Lookup(ctx context.Context, id thin.ID) (pool.Volume, error) {
	p.ofCommit(id)
	return p.Pool.Lookup(ctx, id)
}

func (p *phases) SetReadOnly(id thin.ID, readOnly bool) error {
	p.ofCommit(id)
	return p.Pool.SetReadOnly(id, readOnly)
}

func (p *phases) Flush(ctx context.Context, id thin.ID) error {
	p.ofCommit(id)
	return p.Pool.Flush(ctx, id)
}

func (p *phases) Usage(ctx context.Context, id, origin thin.ID, age time.Duration) (pool.Usage, error) {
	p.ofCommit(id)
	return p.Pool.Usage(ctx, id, origin, age)
}

// TestKernelFaultInEachPhaseOfAnUnpack: after a temporary fault of the disk in any phase, a committed layer
// is a whole file system. It has every file, unless the client received an error.
func TestKernelFaultInEachPhaseOfAnUnpack(t *testing.T) {
	sizesOf := map[string]struct{ base, data int64 }{
		filesystem.Ext4: {32 << 20, 48 << 20},
		filesystem.XFS:  {filesystem.MinXFS, 96 << 20},
	}
	for _, typ := range dmtest.Filesystems() {
		sizes := sizesOf[typ]
		t.Run(typ, func(t *testing.T) {
			dmtest.RequireKernel(t)
			dmtest.NoLeaks(t)
			disk := faulty.New(t, sizes.data+sizes.data/4)
			dir := disk.Mount(t, false)
			zeroFile(t, filepath.Join(dir, "data"), int(sizes.data))
			config := faultConfig()
			config.Filesystem, config.BaseBytes = typ, uint64(sizes.base)
			meta := faulty.New(t, 16<<20).Mount(t, true)
			ctx, h := newFaultHost(t, places{data: dir, metadata: meta}, config, uint64(sizes.data), 4<<20)
			p := &phases{disk: disk, t: t}
			require.NoError(t, h.Close())
			h.wrap = func(inner snapshotter.Pool) snapshotter.Pool { p.Pool = inner; return p }
			require.NoError(t, h.open(ctx, config))

			require.NoError(t, h.unpackInPhases(ctx, t, p, "whole"))
			outcomes := make(map[string][]int)
			for n, total := 1, p.at; n <= total; n++ {
				p.at, p.failAt = 0, n
				err := h.unpackInPhases(ctx, t, p, fmt.Sprint("layer", n))
				disk.Heal(t)
				class := "committed"
				if err != nil {
					require.True(t, errdefs.IsUnavailable(err) || errdefs.IsDataLoss(err), "phase %d: %v", n, err)
					class = errdefs.Resolve(err).Error()
				}
				outcomes[class] = append(outcomes[class], n)
				require.NoError(t, h.removeAll(ctx))
				if h.mode(t) != thin.ModeReadWrite {
					h.repairPoolWith(ctx, t, config, func() { disk.Remount(t, dir) }, clearNeedsCheck(filepath.Join(meta, "metadata")))
				}
			}
			t.Logf("the phases: %v", outcomes)
		})
	}
}

// unpackInPhases does the steps of containerd, and returns the error of Commit. It continues after other
// errors: no client does, but even then a committed layer must be whole.
func (h *host) unpackInPhases(ctx context.Context, t *testing.T, p *phases, name string) error {
	t.Helper()
	key := unpackKeyOf(name)
	p.next()
	mounts, told := h.Prepare(ctx, key, "")
	if told != nil {
		return told
	}
	dev, at := mounts[0].Source, t.TempDir()
	step := func(f func() error) {
		p.next()
		told = errors.Join(told, f())
	}
	isMounted := true
	step(func() error {
		err := mount.All(mounts, at)
		isMounted = err == nil
		return err
	})
	if isMounted {
		step(func() error { return writeTree(at, "a") })
		step(func() error { return writeBack(dev) })
		step(func() error {
			return errors.Join(os.Rename(filepath.Join(at, "a0"), filepath.Join(at, "moved")), writeTree(at, "b"))
		})
		step(func() error { return writeBack(dev) })
		step(func() error { return os.RemoveAll(filepath.Join(at, "moved")) })
		step(func() error { return mount.UnmountAll(at, 0) })
	}
	p.volume = h.volumeOf(t, key)
	p.next()
	err := h.Commit(ctx, name, key)
	if p.volume = 0; err == nil {
		p.disk.Heal(t)
		h.requireTree(ctx, t, name, told == nil && isMounted)
	}
	return err
}

func writeTree(dir, prefix string) error {
	for i := range 20 {
		d := filepath.Join(dir, fmt.Sprint(prefix, i))
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
		for j := range 10 {
			if err := os.WriteFile(filepath.Join(d, fmt.Sprint(j)), []byte(strings.Repeat("x", 1000*j)), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeBack makes the kernel write its cache of a device, as it does by itself every few seconds. Errors
// are not reported.
func writeBack(dev string) error {
	f, err := os.Open(dev)
	if err != nil {
		return err
	}
	defer f.Close()
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE
	// It may return the error of an earlier write, as to any caller.
	_ = unix.SyncFileRange(int(f.Fd()), 0, 0, all)
	return nil
}

// requireTree checks the file system of a layer. If the unpack got no error, it also checks the files.
func (h *host) requireTree(ctx context.Context, t *testing.T, name string, complete bool) {
	t.Helper()
	var rec metadata.Snapshot
	require.NoError(t, h.store.View(ctx, func(tx *metadata.Tx) (err error) {
		rec, err = tx.Get(name)
		return err
	}))
	require.NoError(t, h.Cleanup(ctx))
	require.NoError(t, fsck.Layer(ctx, h.pool, rec))
	if !complete {
		return
	}
	view, err := h.View(ctx, "view of "+name, name)
	require.NoError(t, err)
	mounted(t, view, func(dir string) {
		for _, prefix := range []string{"a", "b"} {
			for i := range 20 {
				for j := range 10 {
					file := filepath.Join(dir, fmt.Sprint(prefix, i), fmt.Sprint(j))
					if prefix == "a" && i == 0 {
						require.NoFileExists(t, file)
						continue
					}
					info, err := os.Stat(file)
					require.NoError(t, err)
					require.EqualValues(t, 1000*j, info.Size())
				}
			}
		}
	})
	require.NoError(t, h.Remove(ctx, "view of "+name))
}

func (h *host) volumeOf(t *testing.T, key string) (id thin.ID) {
	t.Helper()
	require.NoError(t, h.store.View(t.Context(), func(tx *metadata.Tx) error {
		rec, err := tx.Get(key)
		id = thin.ID(rec.VolumeID)
		return err
	}))
	return id
}

func (h *host) removeAll(ctx context.Context) error {
	var keys []string
	if err := h.store.View(ctx, func(tx *metadata.Tx) error {
		return tx.ForEach(func(rec metadata.Snapshot) error {
			keys = append(keys, rec.Key)
			return nil
		})
	}); err != nil {
		return err
	}
	for _, key := range keys {
		if err := h.Remove(ctx, key); err != nil {
			return err
		}
	}
	return h.Cleanup(ctx)
}
