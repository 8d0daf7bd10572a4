package snapshotter_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// trimBench is a snapshotter with snapshots of four pieces; "box" is mounted.
func trimBench(t *testing.T) (b *bench, dev string) {
	t.Helper()
	config := fakeConfig()
	config.BaseBytes = 512 << 20
	b = newBench(t, config)
	b.layer(t, "layer", "", "a layer")
	dev = b.prepare(t, "box", "layer")
	require.NoError(t, b.pool.Open(dev, 1))
	t.Cleanup(func() { require.NoError(t, b.pool.Open(dev, -1)) })
	return b, dev
}

func TestTrim(t *testing.T) {
	b, _ := trimBench(t)
	done, err := b.Trim(t.Context(), "box")
	require.NoError(t, err)
	require.NoError(t, done.Stopped)
	require.EqualValues(t, 128<<20, done.Bytes, "a quarter of it is free")
	require.Equal(t, 4, b.pool.Calls()["Trim"])
	require.NotZero(t, done.VolumeID)

	// The file system ends before its volume.
	b.pool.SetFault(func(method string, _ thin.ID) error {
		if method == "Trim" && b.pool.Calls()["Trim"] >= 6 {
			return unix.EINVAL
		}
		return nil
	})
	done, err = b.Trim(t.Context(), "box")
	require.NoError(t, err)
	require.NoError(t, done.Stopped)
	require.EqualValues(t, 64<<20, done.Bytes)

	for errno, class := range map[unix.Errno]error{
		unix.EBUSY: errdefs.ErrFailedPrecondition, unix.EROFS: errdefs.ErrFailedPrecondition,
		unix.EOPNOTSUPP: errdefs.ErrNotImplemented, unix.EIO: errdefs.ErrUnavailable,
	} {
		b.pool.SetFault(func(method string, _ thin.ID) error {
			if method == "Trim" {
				return errno
			}
			return nil
		})
		_, err = b.Trim(t.Context(), "box")
		require.ErrorIs(t, err, class)
		require.ErrorIs(t, err, errno)
	}
}

// TestTrimInWholeBlocks: a pool ignores a discard of less than one block.
func TestTrimInWholeBlocks(t *testing.T) {
	b, _ := trimBench(t)
	b.pool.SetStatus(func(s *pool.Status) { s.BlockBytes = 256 << 20 })
	done, err := b.Trim(t.Context(), "box")
	require.NoError(t, err)
	require.EqualValues(t, 128<<20, done.Bytes)
	require.Equal(t, 2, b.pool.Calls()["Trim"])
}

// Only an active, mounted snapshot other than an unpack is trimmed.
func TestTrimRefuses(t *testing.T) {
	b, _ := trimBench(t)
	_, err := b.View(t.Context(), "view", "layer")
	require.NoError(t, err)
	b.prepare(t, "stopped", "layer")
	unpacked := b.prepare(t, unpackKey, "layer")
	require.NoError(t, b.pool.Open(unpacked, 1))
	defer func() { require.NoError(t, b.pool.Open(unpacked, -1)) }()
	for key, class := range map[string]error{
		"nothing": errdefs.ErrNotFound, "layer": errdefs.ErrFailedPrecondition, "view": errdefs.ErrFailedPrecondition,
		"stopped": errdefs.ErrFailedPrecondition, unpackKey: errdefs.ErrFailedPrecondition,
	} {
		_, err := b.Trim(t.Context(), key)
		require.ErrorIs(t, err, class, key)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = b.Trim(ctx, "box")
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, b.pool.Calls()["Trim"])
}

// A concurrent Commit or Remove waits only for the running piece, and ends the Trim. The committed content
// no longer changes.
func TestTrimIsOvertaken(t *testing.T) {
	for name, overtake := range map[string]func(b *bench) error{
		"commit": func(b *bench) error { return b.Commit(context.Background(), "committed", "box") },
		"remove": func(b *bench) error { return b.Remove(context.Background(), "box") },
		"remove, and prepare": func(b *bench) error {
			if err := b.Remove(context.Background(), "box"); err != nil {
				return err
			}
			_, err := b.Prepare(context.Background(), "box", "layer")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, dev := trimBench(t)
				require.NoError(t, b.pool.Write(dev, "what is committed"))
				ended := make(chan error, 1)
				var once sync.Once
				b.pool.SetFault(func(method string, _ thin.ID) error {
					if method == "Trim" {
						once.Do(func() {
							go func() { ended <- overtake(b) }()
							time.Sleep(time.Second) // lets the other call wait for the volume
						})
					}
					return nil
				})
				done, err := b.Trim(t.Context(), "box")
				require.NoError(t, err)
				require.NoError(t, <-ended)
				require.ErrorIs(t, done.Stopped, errdefs.ErrNotFound)
				require.EqualValues(t, 32<<20, done.Bytes, "of the one running piece")
				if name == "commit" {
					require.Equal(t, "what is committed", b.content(t, "committed"))
				}
			})
		})
	}
}

// All other operations continue during repeated trims.
func TestTrimAmongOthers(t *testing.T) {
	b, _ := trimBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	var trimming sync.WaitGroup
	for range 4 {
		trimming.Go(func() {
			for ctx.Err() == nil {
				for _, key := range []string{"box", "new"} {
					_, err := b.Trim(ctx, key)
					if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) && ctx.Err() == nil {
						t.Error(err)
					}
				}
			}
		})
	}
	for range 20 {
		dev := b.prepare(t, "new", "layer")
		require.NoError(t, b.pool.Open(dev, 1))
		require.NoError(t, b.pool.Write(dev, "new"))
		require.NoError(t, b.Commit(t.Context(), "committed", "new"))
		require.NoError(t, b.pool.Write(dev, "later"))
		require.NoError(t, b.pool.Open(dev, -1))
		require.Equal(t, "new", b.content(t, "committed"))
		require.NoError(t, b.Remove(t.Context(), "committed"))
	}
	cancel()
	trimming.Wait()
	b.requireNoLeftovers(t)
}
