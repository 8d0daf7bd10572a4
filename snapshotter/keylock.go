package snapshotter

import (
	"context"
	"sync"
)

// keyLock is a set of locks, one for each key that is locked or awaited. The zero value is ready to use.
type keyLock[K comparable] struct {
	mu   sync.Mutex
	held map[K]*keyLockEntry
}

type keyLockEntry struct {
	token chan struct{}
	users int
}

// lock locks key and returns its unlock function. It fails if the context ends first.
func (l *keyLock[K]) lock(ctx context.Context, key K) (unlock func(), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = make(map[K]*keyLockEntry)
	}
	e := l.held[key]
	if e == nil {
		e = &keyLockEntry{token: make(chan struct{}, 1)}
		l.held[key] = e
	}
	e.users++
	l.mu.Unlock()

	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if e.users--; e.users == 0 {
			delete(l.held, key)
		}
	}
	select {
	case e.token <- struct{}{}:
		return func() { <-e.token; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
