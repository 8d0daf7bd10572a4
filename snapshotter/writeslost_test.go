package snapshotter_test

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// TestWritesLostDuringACopy: the pool fails writes after the first look at its status, for a short time.
func TestWritesLostDuringACopy(t *testing.T) {
	for name, operate := range map[string]func(*testing.T, *bench) error{
		"Commit": func(t *testing.T, b *bench) error { return b.Commit(t.Context(), "done", "a") },
		"Diff": func(t *testing.T, b *bench) error {
			frozen, err := b.Freeze(t.Context(), "a")
			if err == nil {
				frozen.Release(t.Context())
			}
			return err
		},
		"fork": func(t *testing.T, b *bench) error {
			_, err := b.Prepare(t.Context(), "fork", "layer", b.issue(t, "a"))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				config := fakeConfig()
				config.Spares = 0
				b := newBench(t, config)
				b.layer(t, "layer", "", "content")
				dev := b.prepare(t, "a", "layer")
				require.NoError(t, b.pool.Open(dev, 1))
				var once sync.Once
				b.pool.SetFault(func(method string, _ thin.ID) error {
					if method == "Suspend" {
						once.Do(func() {
							b.pool.SetStatus(func(s *pool.Status) { s.Mode = thin.ModeReadOnly })
							time.Sleep(3500 * time.Millisecond)
							b.pool.SetStatus(func(s *pool.Status) { s.Mode = thin.ModeReadWrite })
						})
					}
					return nil
				})
				require.ErrorIs(t, operate(t, b), metadata.ErrWritesLost)
				require.NoError(t, b.pool.Open(dev, -1))
				b.requireNoLeftovers(t)
			})
		})
	}
}

// TestWritesLostAtClose: the kernel reports the error of a flush only once.
func TestWritesLostAtClose(t *testing.T) {
	for _, method := range []string{"Flush", "Suspend"} {
		t.Run(method, func(t *testing.T) {
			b := newBench(t, fakeConfig())
			require.NoError(t, b.pool.Write(b.prepare(t, unpackKey, ""), "content"))
			id := b.volume(t, unpackKey)
			b.pool.SetFault(func(called string, on thin.ID) error {
				if called == method && on == id {
					return unix.EIO
				}
				return nil
			})
			require.NoError(t, b.Close())
			b.pool.SetFault(func(string, thin.ID) error { return nil })
			b.openStore(t)
			require.NoError(t, b.start(t))
			require.ErrorIs(t, b.Commit(t.Context(), "layer", unpackKey), metadata.ErrWritesLost)
		})
	}
}
