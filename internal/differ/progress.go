package differ

import (
	"context"
	"io"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
)

// progressTime is the interval at which the progress of a long comparison is logged.
const progressTime = 30 * time.Second

type progress struct {
	stats   *counters
	writing atomic.Bool
	written atomic.Uint64 // bytes of the layer, before compression
}

// watch logs the progress of a comparison until stop is called.
func (d *Differ) watch(ctx context.Context) (p *progress, stop func()) {
	p = &progress{stats: &d.stats}
	ctx, stop = context.WithCancel(ctx)
	started := time.Now()
	go func() {
		ticker := time.NewTicker(progressTime)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			line := log.G(ctx).WithField("duration", time.Since(started).Round(time.Second).String())
			if p.writing.Load() {
				line.WithField("written", p.written.Load()).Info("writing the layer")
			} else {
				line.Info("comparing snapshots")
			}
		}
	}()
	return p, stop
}

// of returns a writer to w that counts the written bytes.
func (p *progress) of(w io.Writer) io.Writer {
	p.writing.Store(true)
	return counting{w, p}
}

type counting struct {
	io.Writer
	*progress
}

func (c counting) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	c.written.Add(uint64(n))
	c.stats.written.Add(uint64(n))
	return n, err
}
