package daemon

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestCloseDoesNotHang: a call that hangs in the kernel does not stop the daemon from closing.
func TestCloseDoesNotHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		require.ErrorIs(t, closeWithin(controlWait, func() error { return broken }), broken)
		kernel := make(chan struct{})
		defer close(kernel)
		begun := time.Now()
		require.NoError(t, closeWithin(controlWait, func() error {
			<-kernel
			return nil
		}))
		require.Equal(t, controlWait, time.Since(begun))
	})
}
