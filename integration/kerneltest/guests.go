package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/thinsnap/thinsnap/integration/vm"
)

// long returns the packages whose tests take over a minute in an emulated guest, the longest first: the longest must
// not begin last, when the other guests have ended.
func long() []string {
	return []string{
		"integration", "snapshotter", "devmapper/pool", "internal/daemon", "integration/failpoint", "integration/conformance",
		"packaging/debian",
	}
}

func longestFirst(a, b testPackage) int {
	place := func(p testPackage) int {
		if i := slices.Index(long(), strings.TrimPrefix(p.ImportPath, modulePath)); i >= 0 {
			return i
		}
		return len(long())
	}
	return cmp.Compare(place(a), place(b))
}

// guestsAtATime returns the number of places in which packages are tested concurrently; the host is one place.
//
// Two guests with one processor each need half of the time of one guest with two processors. The emulator has a further
// thread for each guest's devices. While it runs, one of the guest's processors does not, and the other spins if it
// waits for a lock or an interrupt of the first.
func guestsAtATime(cpus, packages int) (int, error) {
	direct, _, err := vm.Prefer()
	if err != nil || direct {
		return 1, err
	}
	return min(vm.GuestsAtATime(cpus), packages), nil
}

// inTurn tests each package in the next free place. The error names the packages that failed.
func inTurn(
	ctx context.Context, packages []testPackage, places int, newPlace func(i int) *place,
	test func(*place, testPackage) error,
) error {
	queue := make(chan testPackage, len(packages))
	for _, p := range packages {
		queue <- p
	}
	close(queue)
	failed := make([]error, places)
	var workers sync.WaitGroup
	for i := range places {
		workers.Go(func() {
			at := newPlace(i)
			defer at.close()
			for p := range queue {
				err := test(at, p)
				if ctx.Err() != nil {
					failed[i] = ctx.Err()
					return
				}
				if err != nil {
					failed[i] = errors.Join(failed[i], fmt.Errorf("%s: %w", p.ImportPath, err))
					at.abandon()
				}
			}
		})
	}
	workers.Wait()
	return errors.Join(failed...)
}
