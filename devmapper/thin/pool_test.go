package thin_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// An id that is too large is refused before the kernel is asked.
func TestPoolRefusesIDs(t *testing.T) {
	p := thin.NewPool(nil, "pool")
	for _, err := range []error{
		p.CreateThin(thin.MaxID + 1), p.CreateSnap(thin.MaxID+1, 1), p.CreateSnap(1, thin.MaxID+1), p.Delete(thin.MaxID + 1),
	} {
		require.ErrorIs(t, err, unix.EINVAL)
		require.ErrorIs(t, err, thin.ErrNotDone)
	}
}
