package thin_test

import (
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
)

// attach gives a loop device over a new sparse file.
func attach(t *testing.T, path string, size int64) *blockdev.Loop {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, errors.Join(f.Truncate(size), f.Close()))
	l, err := blockdev.LoopAttach(path, blockdev.LoopOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return l
}

// fill writes n bytes to a device and flushes it; the error may be that of
// either.
func fill(path string, n int) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	piece := make([]byte, mib)
	for i := range piece {
		piece[i] = 'f'
	}
	for written := 0; written < n && err == nil; written += len(piece) {
		_, err = f.Write(piece)
	}
	return errors.Join(err, f.Sync(), f.Close())
}
