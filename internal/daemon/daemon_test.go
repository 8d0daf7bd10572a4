package daemon

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestCloseIsBounded: whether the daemon stops or could not start, a call that the kernel keeps does not keep it.
func TestCloseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		require.ErrorIs(t, bounded(func() error { return broken }), broken)
		kernel := make(chan struct{})
		defer close(kernel)
		begun := time.Now()
		require.NoError(t, bounded(func() error {
			<-kernel
			return nil
		}))
		require.Equal(t, controlWait, time.Since(begun))
	})
}
