package program

import (
	"context"
	"time"
)

// progressInterval is the time between two reports of a running program.
const progressInterval = 10 * time.Second

type progressKey struct{}

// WithProgress returns a context in which report is called when a program starts, and every ten
// seconds while it runs. LVM zeroes or checks all metadata of a pool, which takes minutes on a
// large disk.
func WithProgress(ctx context.Context, report func()) context.Context {
	return context.WithValue(ctx, progressKey{}, report)
}

// reportProgress calls the report function of ctx until stop is called.
func reportProgress(ctx context.Context) (stop func()) {
	report, ok := ctx.Value(progressKey{}).(func())
	if !ok {
		return func() {}
	}
	report()
	ticker, ended := time.NewTicker(progressInterval), make(chan struct{})
	go func() {
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				report()
			case <-ended:
				return
			}
		}
	}()
	return func() { close(ended) }
}
