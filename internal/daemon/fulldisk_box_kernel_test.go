package daemon

import (
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// box is a container that writes files, syncs each, and removes older ones.
type box struct {
	s      *sharedDisk
	key    string
	dir    string
	rnd    *rand.Rand
	n      int
	synced map[string][sha256.Size]byte

	stop  chan struct{}
	ended chan error
}

func (s *sharedDisk) newBox(t *testing.T, key string) *box {
	t.Helper()
	mounts, err := s.snapshotter.Prepare(t.Context(), key, "")
	require.NoError(t, err)
	return &box{
		s: s, key: key, dir: mountOn(t, mounts), rnd: rand.New(rand.NewPCG(1, 2)), synced: make(map[string][sha256.Size]byte),
	}
}

func (b *box) start() {
	b.stop, b.ended = make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-b.stop:
				b.ended <- nil
				return
			default:
			}
			if err := b.write(); err != nil {
				b.ended <- err
				return
			}
		}
	}()
}

// halt stops writing, and returns the first error.
func (b *box) halt() error {
	close(b.stop)
	return <-b.ended
}

func (b *box) write() error {
	b.n++
	content := make([]byte, 4096+b.rnd.IntN(1<<20))
	for i := range content {
		content[i] = byte(b.rnd.Uint32())
	}
	name := strconv.Itoa(b.n)
	f, err := os.Create(filepath.Join(b.dir, name))
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	b.synced[name] = sha256.Sum256(content)
	const keep = 16
	last := strconv.Itoa(b.n - keep)
	delete(b.synced, last)
	if err := os.Remove(filepath.Join(b.dir, last)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil // it failed while it was written
}

// verify reads the synced files from the disk.
func (b *box) verify(t *testing.T) {
	t.Helper()
	require.NoError(t, mount.UnmountAll(b.dir, 0))
	mounts, err := b.s.snapshotter.Mounts(t.Context(), b.key)
	require.NoError(t, err)
	remountOn(t, mounts, b.dir)
	for name, want := range b.synced {
		content, err := os.ReadFile(filepath.Join(b.dir, name))
		require.NoError(t, err)
		require.Equal(t, want, sha256.Sum256(content), "%s of %s", name, b.key)
	}
}

func (b *box) remove(t *testing.T) {
	t.Helper()
	require.NoError(t, mount.UnmountAll(b.dir, 0))
	require.NoError(t, b.s.snapshotter.Remove(t.Context(), b.key))
}

// image creates and views a layer, or fails for lack of space. If lost is true, the pool may fail
// writes meanwhile.
func (s *sharedDisk) image(ctx context.Context, dir, key string, lost bool) error {
	err := s.makeImage(ctx, dir, key, 1<<20)
	if lost && (errdefs.IsDataLoss(err) || errors.Is(err, unix.EIO) || errdefs.IsUnavailable(err)) {
		err = nil
	}
	// Remove a layer that was not committed.
	if removed := tolerate(s.snapshotter.Remove(ctx, key+"-new")); removed != nil {
		return errors.Join(err, removed)
	}
	return tolerate(err)
}

func (s *sharedDisk) makeImage(ctx context.Context, dir, key string, bytes int) error {
	mounts, err := s.snapshotter.Prepare(ctx, key+"-new", "")
	if err != nil {
		return err
	}
	if err := mount.All(mounts, dir); err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(dir, "layer"), slices.Repeat([]byte{7}, bytes), 0o600)
	if err := errors.Join(err, mount.UnmountAll(dir, 0)); err != nil {
		return err
	}
	return s.snapshotter.Commit(ctx, key, key+"-new")
}

// pull creates and removes images until stop is closed.
func (s *sharedDisk) pull(ctx context.Context, dir string, stop chan struct{}, lost bool) error {
	for {
		select {
		case <-stop:
			return nil
		case <-time.After(10 * time.Millisecond):
		}
		s.images++
		if err := s.image(ctx, dir, "image-"+strconv.Itoa(s.images), lost); err != nil {
			return err
		}
		if err := tolerate(s.snapshotter.Remove(ctx, "image-"+strconv.Itoa(s.images-4))); err != nil {
			return err
		}
	}
}
