package builtin

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// TestReadWhileContainerdRuns: containerd has the pool's database open, and metadata.db from its
// first call.
func TestReadWhileContainerdRuns(t *testing.T) {
	t.Parallel()
	m := furnished(t)
	_, err := Read(t.Context(), m.dir, testPool)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, filepath.Join(m.dir, testPool+".db"))
	require.ErrorContains(t, err, "stop containerd")

	require.NoError(t, m.pool.Close())
	m.view(func(context.Context) error { return nil })
	_, err = Read(t.Context(), m.dir, testPool)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, filepath.Join(m.dir, metadataFile))

	require.Len(t, m.read().Snapshots, 11, "a refused Read holds no lock")
	m.open()
}

// TestHoldFile is the child process of TestReadBesideAnotherProcess.
func TestHoldFile(t *testing.T) {
	path := os.Getenv("BUILTIN_HOLD")
	if path == "" {
		return // not a child process
	}
	db, err := bolt.Open(path, 0, nil)
	require.NoError(t, err)
	_, err = os.Stdout.WriteString("held\n")
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, os.Stdin)
	require.NoError(t, err)
	require.NoError(t, db.Close())
}

func TestReadBesideAnotherProcess(t *testing.T) {
	t.Parallel()
	m := furnished(t)
	m.close()
	holder := exec.Command(os.Args[0], "-test.run=^TestHoldFile$")
	holder.Env = append(os.Environ(), "BUILTIN_HOLD="+filepath.Join(m.dir, metadataFile))
	end, err := holder.StdinPipe()
	require.NoError(t, err)
	out, err := holder.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, holder.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "held\n", line)

	_, err = Read(t.Context(), m.dir, testPool)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "stop containerd")
	requireUnlocked(t, filepath.Join(m.dir, testPool+".db"))

	require.NoError(t, end.Close())
	require.NoError(t, holder.Wait())
	require.Len(t, m.read().Snapshots, 11)
}

// TestReadBesideAReader: readers do not exclude each other, but containerd waits for them.
func TestReadBesideAReader(t *testing.T) {
	m := furnished(t)
	m.close()
	path := filepath.Join(m.dir, metadataFile)
	require.NoError(t, view(path, func(*bolt.Tx) error {
		f, err := os.Open(path)
		require.NoError(t, err)
		require.ErrorIs(t, syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK)
		require.NoError(t, f.Close())
		require.Len(t, m.read().Snapshots, 11)
		return nil
	}))
	requireUnlocked(t, path)
}

func requireUnlocked(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	require.NoError(t, syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB))
	require.NoError(t, f.Close())
}

// TestReadOfADamagedFile: each damaged file is refused, and not changed.
func TestReadOfADamagedFile(t *testing.T) {
	page := os.Getpagesize()
	for name, damage := range map[string]func(b []byte) []byte{
		"empty":          func([]byte) []byte { return nil },
		"cut":            func(b []byte) []byte { return b[:3*page] },
		"cut at its top": func(b []byte) []byte { return b[:100] },
		"text":           func(b []byte) []byte { return append([]byte("not a database"), make([]byte, len(b))...) },
		"zeros":          func(b []byte) []byte { return make([]byte, len(b)) },
		"pages":          func(b []byte) []byte { clear(b[2*page:]); return b },
	} {
		for _, file := range []string{metadataFile, testPool + ".db"} {
			t.Run(name+" "+file, func(t *testing.T) {
				m := furnished(t)
				m.close()
				b, path := damage(m.bytes(file)), filepath.Join(m.dir, file)
				require.NoError(t, os.WriteFile(path, b, 0o600))
				_, err := Read(t.Context(), m.dir, testPool)
				require.ErrorIs(t, err, errdefs.ErrDataLoss)
				require.ErrorContains(t, err, path)
				require.ErrorContains(t, err, "restore a backup")
				require.True(t, bytes.Equal(b, m.bytes(file)))
				requireUnlocked(t, path)
				require.NoError(t, os.Remove(path)) // for containerd's code at the end of the test
			})
		}
	}
}

// TestViewOfATruncatedFile: the mapped memory faults, like on a failing disk.
func TestViewOfATruncatedFile(t *testing.T) {
	m := furnished(t)
	m.close()
	path := filepath.Join(m.dir, metadataFile)
	r := &reader{ctx: t.Context(), left: 1 << 20, limits: limits{records: 100, text: 1 << 20}}
	err := view(path, func(tx *bolt.Tx) error {
		require.NoError(t, os.Truncate(path, int64(2*os.Getpagesize())))
		return r.metadata(tx)
	})
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, path)
	requireUnlocked(t, path)
}

func TestReadOfWhatIsNoFile(t *testing.T) {
	m := furnished(t)
	m.close()
	path := filepath.Join(m.dir, metadataFile)
	large := filepath.Join(m.dir, "large")
	require.NoError(t, os.WriteFile(large, m.bytes(metadataFile), 0o600))
	require.NoError(t, os.Truncate(large, maxFile+1))
	for _, c := range []struct {
		make func() error
		want error
	}{
		{func() error { return os.Mkdir(path, 0o700) }, errdefs.ErrDataLoss},
		{func() error { return syscall.Mkfifo(path, 0o600) }, errdefs.ErrDataLoss},
		{func() error { return os.Symlink(testPool+".db", path) }, errdefs.ErrFailedPrecondition},
		{func() error { return os.Rename(large, path) }, errdefs.ErrResourceExhausted},
	} {
		require.NoError(t, os.Remove(path))
		require.NoError(t, c.make())
		_, err := Read(t.Context(), m.dir, testPool)
		require.ErrorContains(t, err, path)
		require.ErrorIs(t, err, c.want)
	}
}
