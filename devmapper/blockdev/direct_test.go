package blockdev_test

import (
	"crypto/rand"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
)

// direct creates a file of the given size with random bytes, and opens it. It uses /var/tmp,
// because /tmp may be a tmpfs, which has no direct I/O before Linux 6.6.
func direct(t *testing.T, size int) (*blockdev.Direct, []byte) {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "direct")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	path := filepath.Join(dir, "file")
	content := make([]byte, size)
	_, err = rand.Read(content)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, content, 0o600))
	d, err := blockdev.OpenDirect(path)
	require.NoError(t, err)
	return d, content
}

func TestDirectRead(t *testing.T) {
	d, content := direct(t, 5*4096+700)
	defer func() { require.NoError(t, d.Close()) }()

	require.NoError(t, iotest.TestReader(io.NewSectionReader(d, 0, int64(len(content))), content))
	for _, span := range [][2]int{
		{0, 4096}, {4096, 4096}, {4095, 2}, {1, 4096}, {100, 3 * 4096}, {5 * 4096, 700}, {0, len(content)}, {7, 0},
	} {
		p := make([]byte, span[1])
		n, err := d.ReadAt(p, int64(span[0]))
		require.NoError(t, err, "%v", span)
		assert.Equal(t, span[1], n)
		assert.Equal(t, content[span[0]:span[0]+span[1]], p, "%v", span)
	}

	p := make([]byte, 4096)
	n, err := d.ReadAt(p, 5*4096)
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, content[5*4096:], p[:n])
	n, err = d.ReadAt(p, 1<<30)
	require.ErrorIs(t, err, io.EOF)
	require.Zero(t, n)
	_, err = d.ReadAt(p, -1)
	require.ErrorIs(t, err, unix.EINVAL)
}

func TestDirectConcurrently(t *testing.T) {
	d, content := direct(t, 16*4096)
	defer func() { require.NoError(t, d.Close()) }()
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			p := make([]byte, 4096)
			n, err := d.ReadAt(p, int64(i)*4096)
			if assert.Equal(t, 4096, n, "%v", err) {
				assert.Equal(t, content[i*4096:(i+1)*4096], p)
			}
		})
	}
	all.Wait()
}

func TestDirectAfterClose(t *testing.T) {
	d, _ := direct(t, 4096)
	require.NoError(t, d.Close())
	require.ErrorIs(t, d.Close(), os.ErrClosed)
	_, err := d.ReadAt(make([]byte, 1), 0)
	require.ErrorIs(t, err, os.ErrClosed)

	_, err = blockdev.OpenDirect(filepath.Join(t.TempDir(), "missing"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
