package clients

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/grpc"
)

// Connections are connections to containerds, kept for the next call: finding the socket of a process takes longer
// than most calls. The zero value has none.
type Connections struct {
	mu   sync.Mutex
	kept map[Process]*connection
}

type connection struct {
	conn  *grpc.ClientConn
	users int
}

// Dial is the function Dial, with a connection that is kept. release must be called; the connection must not be closed.
func (c *Connections) Dial(ctx context.Context, p Process) (conn *grpc.ClientConn, release func(), err error) {
	if found := c.use(p, nil); found != nil {
		return found.conn, func() { c.release(found) }, nil
	}
	if conn, err = Dial(ctx, p); err != nil {
		return nil, nil, err
	}
	used := c.use(p, conn)
	if used.conn != conn { // another call was quicker
		_ = conn.Close()
	}
	return used.conn, func() { c.release(used) }, nil
}

// use returns the connection to a process, which becomes conn if it has none and conn is not nil.
func (c *Connections) use(p Process, conn *grpc.ClientConn) *connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := c.kept[p]
	switch {
	case found != nil:
	case conn == nil:
		return nil
	default:
		_ = c.closeUnused(func(p Process) bool { return !find(p.PID).same(p) })
		if c.kept == nil {
			c.kept = make(map[Process]*connection)
		}
		found = &connection{conn: conn}
		c.kept[p] = found
	}
	found.users++
	return found
}

func (c *Connections) release(used *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	used.users--
}

// closeUnused closes the connections to such processes that nothing uses.
func (c *Connections) closeUnused(such func(Process) bool) (err error) {
	for p, kept := range c.kept {
		if kept.users == 0 && such(p) {
			err = errors.Join(err, kept.conn.Close())
			delete(c.kept, p)
		}
	}
	return err
}

// Close closes the connections that are not in use.
func (c *Connections) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closeUnused(func(Process) bool { return true })
}
