package adopt

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestAdoptionOnAFullDisk fills the disk, except for a few pages, while an adoption runs. The
// adoption succeeds, or leaves no change, or can be completed when the disk has space again.
func TestAdoptionOnAFullDisk(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	disk := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.Mkdir(disk, 0o700))
	require.NoError(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "size=16M"))
	defer func() { require.NoError(t, unix.Unmount(disk, 0)) }()
	s := newFixtureIn(t, disk)
	before := s.state(t)
	ballast := filepath.Join(disk, "ballast")
	page := int64(os.Getpagesize())
	step := 4 * page
	if dmtest.Thorough() {
		step = page
	}
	fill := func(free int64) {
		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(disk, &st))
		f, err := os.Create(ballast)
		require.NoError(t, err)
		require.NoError(t, unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-free))
		require.NoError(t, f.Close())
	}
	ends := make(map[string]int)
	for free := int64(0); ends["well"] < 2; free += step {
		for _, f := range []fake{{onZero: func() { fill(free) }}, {onDeactivate: func() { fill(free) }}} {
			f.fixture = s
			_, err := run(t.Context(), s.options(), func(string) {}, f)
			require.NoError(t, os.Remove(ballast), "%v", err)
			_, recordErr := Read(s.options().Config.Root)
			switch {
			case err == nil:
				ends["well"]++
			case errdefs.IsNotFound(recordErr):
				require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
				ends["as before"]++
				s.requireBack(t, before)
				continue
			default:
				require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
				ends["later"]++
				s.run(t)
			}
			s.requireAdopted(t, all...)
			s.undo(t)
			s.requireBack(t, before)
		}
	}
	require.Positive(t, ends["as before"])
	require.Positive(t, ends["later"])
	t.Log(ends)

	fill(page)
	_, err := s.tryRun(t)
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	require.NoError(t, os.Remove(ballast))
	s.requireBack(t, before)
}
