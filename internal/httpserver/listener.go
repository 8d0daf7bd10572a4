package httpserver

import (
	"net"
	"net/netip"
	"sync"
)

// LimitEach returns a TCP listener that closes a connection at once if its peer's address has most
// connections already. The addresses of an IPv6 network of 64 bits count as one.
func LimitEach(l net.Listener, most int) net.Listener {
	return &eachListener{Listener: l, most: most, open: map[netip.Prefix]int{}}
}

type eachListener struct {
	net.Listener
	most int
	mu   sync.Mutex
	open map[netip.Prefix]int
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
		_ = conn.Close() // its peer sees the same with and without an error
	}
}

func (l *eachListener) take(peer netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[peer] >= l.most {
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

// network returns what counts as one peer; the zero prefix is for addresses that are not IP.
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
