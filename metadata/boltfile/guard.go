package boltfile

import (
	"runtime"
	"runtime/debug"
	"strings"
)

// Guard calls fn, and returns its error. If fn panics because of a damaged or unreadable page,
// Guard returns the value of the panic as cause, and no error. Other panics continue.
func Guard(fn func() error) (cause any, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	returned := false
	defer func() {
		if returned {
			return
		}
		bolt := boltPanicked()
		p := recover()
		switch {
		case p == nil: // runtime.Goexit
		case bolt, IsFault(p):
			cause = p
		default:
			panic(p)
		}
	}()
	err = fn()
	returned = true
	return nil, err
}

// IsFault reports whether a panic's cause is a fault in the map of a file: its disk fails, the file
// was truncated, or a damaged page refers to a page behind its end.
func IsFault(cause any) bool {
	_, fault := cause.(interface{ Addr() uintptr })
	return fault
}

// boltPanicked reports to a deferred function whether the current panic began in bbolt. The panic's
// value does not show that: bbolt asserts only some contents of a page, and indexes with others.
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
