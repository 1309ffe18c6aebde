package apiserver

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
)

// multiListener is several listeners that look like one to net/http. More may
// be added while it is in use.
type multiListener struct {
	conns  chan net.Conn
	closed chan struct{}

	mu        sync.Mutex
	listeners []net.Listener
	done      bool
}

// listen opens all addresses. Later ones with port 0 get the first one's port.
func listen(addresses []string) (*multiListener, error) {
	m := &multiListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	for _, address := range addresses {
		if err := m.add(address); err != nil {
			m.Close()
			return nil, err
		}
	}
	return m, nil
}

// add starts to accept connections on another address.
func (m *multiListener) add(address string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("listen address %q: want IP:PORT: %w", address, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.done {
		return net.ErrClosed
	}
	if ap.Port() == 0 && len(m.listeners) > 0 {
		ap = netip.AddrPortFrom(ap.Addr(), uint16(m.listeners[0].Addr().(*net.TCPAddr).Port))
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(ap))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("cannot listen on %s: another program has that port; stop it or choose another port", ap)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("cannot listen on %s: this machine has no such address", ap)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("cannot listen on %s: no permission; ports below 1024 need root", ap)
	case err != nil:
		return fmt.Errorf("cannot listen on %s: %w", ap, err)
	}
	m.listeners = append(m.listeners, l)
	go m.accept(l)
	return nil
}

func (m *multiListener) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // this connection failed, such as by a reset; the next may not
		}
		select {
		case m.conns <- c:
		case <-m.closed:
			c.Close()
			return
		}
	}
}

// Accept returns the next connection on any of the addresses.
func (m *multiListener) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.closed:
		return nil, net.ErrClosed
	}
}

// Close closes all listeners. It may be called more than once.
func (m *multiListener) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.done {
		return nil
	}
	m.done = true
	close(m.closed)
	var errs []error
	for _, l := range m.listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// Addr returns the first address.
func (m *multiListener) Addr() net.Addr { return m.listeners[0].Addr() }

// addrs returns all addresses.
func (m *multiListener) addrs() []netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []netip.AddrPort
	for _, l := range m.listeners {
		ap := l.Addr().(*net.TCPAddr).AddrPort()
		out = append(out, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	}
	return out
}
