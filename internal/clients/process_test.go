package clients

import (
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// After a reboot, a recorded PID can be that of a thread, which has no pidfd.
func TestHandleOfAThread(t *testing.T) {
	threads, end := make(chan int), make(chan struct{})
	defer close(end)
	for range 2 { // one of them is not the main thread
		go func() {
			runtime.LockOSThread()
			threads <- unix.Gettid()
			<-end
		}()
	}
	for range 2 {
		h, err := openHandle(Process{PID: <-threads, StartTime: 1, BootID: "earlier"})
		require.NoError(t, err)
		require.Nil(t, h)
	}
}
