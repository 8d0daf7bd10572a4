package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// untilSignal returns a context that ends with the first SIGTERM or SIGINT. A second one ends the process at once, with
// exitFailure. The release function must be called, and gives the signals their default action back.
func untilSignal(ctx context.Context) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancel(ctx)
	released := make(chan struct{})
	signals := make(chan os.Signal, 2) // a second signal may come before the first has been dealt with
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
