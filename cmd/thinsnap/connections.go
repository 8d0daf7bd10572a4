package main

import (
	"net"
	"sync"
	"time"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/internal/clients"
)

const (
	// connections limits the open connections of a listener; more connections wait to be accepted.
	connections = 64
	// callers limits the connections to containerd's socket, and connectionsOfProcess those of one
	// process; more are closed. So no process can lock out containerd, which needs one connection
	// for each address that it uses.
	callers              = 1024
	connectionsOfProcess = 32
	// noteEvery is the minimum time between two log lines about a listener's limit.
	noteEvery = time.Minute
)

// limitedListener limits the open connections of a listener, and logs when the limit is reached.
type limitedListener struct {
	net.Listener
	slots     chan struct{}
	ofProcess int // the limit for one process, or 0
	note      func(why string)
	done      chan struct{}
	closeOnce sync.Once
	mu        sync.Mutex
	open      map[int]int // connections by PID
}

func limitConnections(l net.Listener, total, ofProcess int, note func(why string)) *limitedListener {
	return &limitedListener{
		Listener: l, slots: make(chan struct{}, total), ofProcess: ofProcess, note: note, done: make(chan struct{}),
		open: make(map[int]int),
	}
}

// Accept returns the next connection within the limits.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		select {
		case l.slots <- struct{}{}:
		default:
			l.note("the limit of open connections is reached: further ones wait")
			select {
			case l.slots <- struct{}{}:
			case <-l.done:
				return nil, net.ErrClosed
			}
		}
		conn, err := l.Listener.Accept()
		if err != nil {
			<-l.slots
			return nil, err
		}
		limited := &limitedConn{Conn: conn, release: sync.OnceFunc(func() { <-l.slots })}
		if l.ofProcess == 0 || l.admit(limited) {
			return limited, nil
		}
		_ = limited.Close()
	}
}

// admit counts a connection for its process. It returns false if the process has reached its limit.
func (l *limitedListener) admit(conn *limitedConn) bool {
	process, err := clients.Peer(conn)
	if err != nil {
		return false // the peer is unknown
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[process.PID] >= l.ofProcess {
		l.note("closing a connection: too many are open from " + process.String())
		return false
	}
	l.open[process.PID]++
	release := conn.release
	conn.release = sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.open[process.PID]--; l.open[process.PID] == 0 {
			delete(l.open, process.PID)
		}
		release()
	})
	return true
}

// Close closes the listener.
func (l *limitedListener) Close() error {
	l.closeOnce.Do(func() { close(l.done) })
	return l.Listener.Close()
}

// limitedConn gives up its place in the limit when it is closed.
type limitedConn struct {
	net.Conn
	release func()
}

// NetConn returns the underlying connection.
func (c *limitedConn) NetConn() net.Conn { return c.Conn }

// Close closes the connection.
func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// noteLimit returns a function that counts how often a limit is reached, and logs it at most once a
// minute.
func noteLimit(address string, count func(address string)) func(why string) {
	var mu sync.Mutex
	var logged time.Time
	return func(why string) {
		count(address)
		mu.Lock()
		defer mu.Unlock()
		if time.Since(logged) < noteEvery {
			return
		}
		logged = time.Now()
		log.L.WithField("address", address).Warn(why)
	}
}
