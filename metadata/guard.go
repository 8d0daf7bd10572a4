package metadata

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// guard calls fn, and returns an error if fn panics because of a page that is damaged or cannot be
// read: Open checks only the pages that it needs, because the time to check all of them grows with
// the store. Other panics continue.
func (s *Store) guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	returned := false
	defer func() {
		if returned {
			return
		}
		bolt := boltPanicked()
		p := recover()
		switch _, fault := p.(interface{ Addr() uintptr }); {
		case p == nil: // runtime.Goexit
		case bolt, fault:
			err = fmt.Errorf("read %s: %w", s.path, pageError(p))
		default:
			panic(p)
		}
	}()
	err = fn()
	returned = true
	return err
}

// boltPanicked tells a deferred function whether the current panic began within bbolt, which
// asserts on some contents of a page and trusts the rest.
func boltPanicked() bool {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(0, pcs)])
	panicking := false
	for {
		f, more := frames.Next()
		switch ofRuntime := strings.HasPrefix(f.Function, "runtime."); {
		case f.Function == "runtime.gopanic":
			panicking = true
		case panicking && !ofRuntime:
			return strings.HasPrefix(f.Function, "go.etcd.io/bbolt")
		}
		if !more {
			return false
		}
	}
}
