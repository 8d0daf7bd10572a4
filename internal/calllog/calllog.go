// Package calllog lets what serves a call add fields to the one line that is
// logged of it.
package calllog

import (
	"context"
	"maps"
	"sync"

	"github.com/containerd/log"
)

type key struct{}

// Fields are those of one call. They may be set concurrently.
type Fields struct {
	mu  sync.Mutex
	all log.Fields
}

// With returns a context in which Set adds to the returned fields.
func With(ctx context.Context) (context.Context, *Fields) {
	f := &Fields{all: log.Fields{}}
	return context.WithValue(ctx, key{}, f), f
}

// Set adds a field to the line of the call that the context belongs to; without
// such a call it does nothing.
func Set(ctx context.Context, name string, value any) {
	f, ok := ctx.Value(key{}).(*Fields)
	if !ok {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all[name] = value
}

// All returns a copy of what was set.
func (f *Fields) All() log.Fields {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.all)
}
