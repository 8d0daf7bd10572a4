package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// untilSignal returns a context that ends at the first SIGTERM or SIGINT. A second signal ends the
// process at once with exitFailure. release restores the signals' default action, and must be
// called.
func untilSignal(ctx context.Context) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancel(ctx)
	released := make(chan struct{})
	signals := make(chan os.Signal, 2) // a second signal may arrive before the first is handled
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	go func() {
		for _, react := range []func(){cancel, func() { os.Exit(exitFailure) }} {
			select {
			case <-signals:
				react()
			case <-released:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(released)
		cancel()
	}
}
