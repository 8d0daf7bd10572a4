package clients

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/grpc"
)

// Connections caches connections to containerds: finding the socket of a process takes longer than most
// calls. The zero value is empty.
type Connections struct {
	mu     sync.Mutex
	cached map[Process]*connection
}

type connection struct {
	conn  *grpc.ClientConn
	users int
}

// Dial is like the function Dial, but reuses connections. The caller must call release, and must not close the
// connection.
func (c *Connections) Dial(ctx context.Context, p Process) (conn *grpc.ClientConn, release func(), err error) {
	if found := c.use(p, nil); found != nil {
		return found.conn, func() { c.release(found) }, nil
	}
	if conn, err = Dial(ctx, p); err != nil {
		return nil, nil, err
	}
	used := c.use(p, conn)
	if used.conn != conn { // another call was faster
		_ = conn.Close()
	}
	return used.conn, func() { c.release(used) }, nil
}

// use returns the cached connection to a process. If there is none, it caches conn, or returns nil if conn is nil.
func (c *Connections) use(p Process, conn *grpc.ClientConn) *connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := c.cached[p]
	switch {
	case found != nil:
	case conn == nil:
		return nil
	default:
		_ = c.closeUnused(func(p Process) bool { return !FindProcess(p.PID).Same(p) })
		if c.cached == nil {
			c.cached = make(map[Process]*connection)
		}
		found = &connection{conn: conn}
		c.cached[p] = found
	}
	found.users++
	return found
}

func (c *Connections) release(used *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	used.users--
}

// closeUnused closes the unused connections to the processes that match.
func (c *Connections) closeUnused(match func(Process) bool) (err error) {
	for p, found := range c.cached {
		if found.users == 0 && match(p) {
			err = errors.Join(err, found.conn.Close())
			delete(c.cached, p)
		}
	}
	return err
}

// Close closes the connections that are not used.
func (c *Connections) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closeUnused(func(Process) bool { return true })
}
