package httpserver

import (
	"net"
	"net/netip"
	"sync"
)

// LimitEach returns a TCP listener that closes a new connection at once if its peer already has
// limit connections. A peer is an IPv4 address, or an IPv6 network of 64 bits.
func LimitEach(l net.Listener, limit int) net.Listener {
	return &eachListener{Listener: l, limit: limit, open: map[netip.Prefix]int{}}
}

type eachListener struct {
	net.Listener
	limit int
	mu    sync.Mutex
	open  map[netip.Prefix]int
}

// Accept implements net.Listener.
func (l *eachListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer := network(conn.RemoteAddr())
		if l.take(peer) {
			return &eachConn{Conn: conn, release: sync.OnceFunc(func() { l.release(peer) })}, nil
		}
		_ = conn.Close() // with or without an error, the peer sees the same
	}
}

func (l *eachListener) take(peer netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[peer] >= l.limit {
		return false
	}
	l.open[peer]++
	return true
}

func (l *eachListener) release(peer netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[peer]--; l.open[peer] == 0 {
		delete(l.open, peer)
	}
}

// network returns the peer of an address; the zero prefix if that is not IP.
func network(address net.Addr) netip.Prefix {
	at, err := netip.ParseAddrPort(address.String())
	if err != nil {
		return netip.Prefix{}
	}
	ip := at.Addr().Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	return netip.PrefixFrom(ip, bits).Masked()
}

type eachConn struct {
	net.Conn
	release func()
}

// Close implements net.Conn.
func (c *eachConn) Close() error {
	c.release()
	return c.Conn.Close()
}
