package metadata

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// guard calls fn, and makes an error of what a page that is damaged, or cannot be read, does to it: Open looks only at those
// that it needs, and reading all of them would make the start as slow as the store is large. What else fn panics with goes on.
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

// boltPanicked tells a deferred function whether the panic it is called for began within bbolt, which asserts on what it
// finds in a page and believes the rest.
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
