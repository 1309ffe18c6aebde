package echo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// serveTCP accepts until the listener closes.
func (s *Server) serveTCP(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				continue
			}
			return err
		}
		s.connsMu.Lock()
		s.conns[c] = struct{}{}
		s.connsMu.Unlock()
		go s.echoTCP(c)
	}
}

// echoTCP writes the answer, which needs no word from the client, and then
// sends back whatever it receives until the client closes its side.
func (s *Server) echoTCP(c net.Conn) {
	defer func() {
		c.Close()
		s.connsMu.Lock()
		delete(s.conns, c)
		s.connsMu.Unlock()
	}()
	if s.begin(context.Background(), 0) {
		return
	}
	if _, err := c.Write(s.encode(s.answer("tcp", c.LocalAddr().String(), c.RemoteAddr().String()))); err != nil {
		return
	}
	if s.opts.LogRequests {
		s.log.Info("request", "protocol", "tcp", "client", c.RemoteAddr().String())
	}
	io.Copy(c, c)
}

// endTCP waits for open connections to end by themselves until ctx does, then
// closes what is left.
func (s *Server) endTCP(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		s.connsMu.Lock()
		n := len(s.conns)
		s.connsMu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.connsMu.Lock()
			defer s.connsMu.Unlock()
			for c := range s.conns {
				c.Close()
			}
			return fmt.Errorf("%d TCP connections still open after --grace %v were cut", n, s.opts.Grace)
		}
	}
}
