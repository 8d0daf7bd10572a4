package snapshotter_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/metadata"
)

// modelKernelTime bounds each part of TestModelOnTheKernel, apart from the running round.
func modelKernelTime() time.Duration {
	if dmtest.Thorough() {
		return 10 * time.Second
	}
	return 4 * time.Second
}

// TestModelOnTheKernel is TestModel on a real pool.
func TestModelOnTheKernel(t *testing.T) {
	for _, spares := range []int{0, 4} {
		t.Run(fmt.Sprintf("spares=%d", spares), func(t *testing.T) {
			config := filesystems["ext4"]
			config.Spares = spares
			_, h := newTestHost(t, config)
			require.NoError(t, h.Cleanup(t.Context()))
			before, err := h.pool.Status(t.Context())
			require.NoError(t, err)
			var rounds int
			for end := time.Now().Add(modelKernelTime()); time.Now().Before(end); rounds++ {
				seed := rand.Uint64()
				t.Logf("seed %d", seed)
				log := &history{}
				for part := range uint64(2) {
					log.run(t, h, rawDisk{}, seed+part, false)
					if part == 0 {
						require.NoError(t, h.reboot(t.Context(), config))
					}
				}
				log.end(t, h, rawDisk{})
				h.requireNothingLeft(t, before.Data.Used)
			}
			t.Logf("%d rounds", rounds)
		})
	}
}

// requireNothingLeft requires that the pool uses as much as without snapshots, and that the kernel has no
// devices other than spares.
func (h *host) requireNothingLeft(t *testing.T, used uint64) {
	t.Helper()
	require.Eventually(t, func() bool {
		require.NoError(t, h.Cleanup(t.Context()))
		require.NoError(t, h.store.View(t.Context(), func(tx *metadata.Tx) error {
			n, err := tx.TrashCount()
			require.Zero(t, n)
			return err
		}))
		status, err := h.pool.Status(t.Context())
		require.NoError(t, err)
		active, err := h.pool.CountActive(t.Context())
		require.NoError(t, err)
		return status.Data.Used == used && active == int(h.Spares().Present)
	}, 20*time.Second, 100*time.Millisecond)
}

// rawDisk keeps a word in the last block of a volume, which a nearly empty file system does not use. It
// bypasses the page cache.
type rawDisk struct{}

const rawBlock = 4096

func (rawDisk) Write(dev, content string) error {
	return rawDisk{}.access(dev, os.O_RDWR, func(f *os.File, at int64, block []byte) error {
		copy(block, content)
		_, err := f.WriteAt(block, at)
		return err
	})
}

func (rawDisk) Read(dev string) (content string, err error) {
	err = rawDisk{}.access(dev, os.O_RDONLY, func(f *os.File, at int64, block []byte) error {
		_, err := f.ReadAt(block, at)
		content = string(bytes.TrimRight(block, "\x00"))
		return err
	})
	return content, err
}

func (rawDisk) access(dev string, flags int, do func(f *os.File, at int64, block []byte) error) error {
	block, err := unix.Mmap(-1, 0, rawBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(dev, flags|unix.O_DIRECT, 0)
	if err != nil {
		return errors.Join(err, unix.Munmap(block))
	}
	size, err := f.Seek(0, 2)
	if err == nil {
		err = do(f, size-rawBlock, block)
	}
	return errors.Join(err, f.Close(), unix.Munmap(block))
}
