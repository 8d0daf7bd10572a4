package snapshotter_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// TestStuckOperationsAreBounded: a client retries without end on a pool that does not answer.
func TestStuckOperationsAreBounded(t *testing.T) {
	for _, hangs := range []map[string]bool{{"Activate": true}, {"Status": true}, {"Activate": true, "Status": true}} {
		t.Run(fmt.Sprint(hangs), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				config := fakeConfig()
				config.Spares = 0
				b := newBench(t, config)
				b.layer(t, "layer", "", "content")
				b.prepare(t, "running", "layer")
				var inKernel, most atomic.Int32
				released := make(chan struct{})
				release := sync.OnceFunc(func() { close(released) })
				defer release()
				b.pool.SetFault(func(method string, _ thin.ID) error {
					if hangs[method] {
						most.Store(max(most.Load(), inKernel.Add(1)))
						<-released
						inKernel.Add(-1)
					}
					return nil
				})
				var err error
				for i := range 1000 {
					ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
					_, err = b.Prepare(ctx, fmt.Sprint("try-", i), "layer")
					cancel()
					require.Error(t, err)
				}
				require.LessOrEqual(t, most.Load(), int32(300), "calls in the kernel, each with a thread")
				require.ErrorIs(t, err, errdefs.ErrUnavailable)
				require.ErrorContains(t, err, "operations wait for the kernel")
				_, err = b.Stat(t.Context(), "running")
				require.NoError(t, err)
				require.NoError(t, b.Remove(t.Context(), "running"))

				release()
				synctest.Wait()
				b.prepare(t, "again", "layer")
				b.requireNoLeftovers(t)
			})
		})
	}
}
