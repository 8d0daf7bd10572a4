package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/internal/provision"
)

// reopenPause is the minimum time between two attempts to reload a pool: each may run programs.
const reopenPause = 10 * time.Second

// reopening is the state of reopenPool.
type reopening struct {
	mu     sync.Mutex
	failed time.Time // the time of the last attempt, if it failed
	err    error
}

// reopenPool loads the pool again after another program, such as dmsetup or vgchange, has removed
// it from the kernel. verify compares it with the store, as at a start. If that fails, the pool is
// removed again. A foreign pool is left to its owner.
func (d *Daemon) reopenPool(ctx context.Context, verify func(context.Context) error) error {
	d.reopening.mu.Lock()
	defer d.reopening.mu.Unlock()
	_, err := d.stored.OpenLoaded(d.control)
	if !errors.Is(err, devmapper.ErrNotFound) {
		return err // another call has loaded it
	}
	if d.stored.Foreign() {
		return fmt.Errorf("its owner has to activate it: %w", pool.ErrNotActive)
	}
	if time.Since(d.reopening.failed) < reopenPause {
		return d.reopening.err
	}
	if _, err = provision.Open(ctx, d.store, d.control, d.config); err == nil {
		d.pool.Reloaded()
		// gofail: var afterReopen struct{}
		if err = verify(ctx); err != nil {
			err = errors.Join(err, d.stored.TakeOut(ctx, d.control))
		}
	}
	if err != nil {
		d.reopening.failed, d.reopening.err = time.Now(), err
	}
	return err
}
