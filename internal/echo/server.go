package echo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Server is a running test server; [New] makes one.
type Server struct {
	opts Options
	log  *slog.Logger

	http []net.Listener
	tcp  []net.Listener
	udp  []net.PacketConn

	readyAt  atomic.Int64 // Unix nanoseconds from which /readyz may say yes
	unready  atomic.Bool  // set over /control or by the stop
	draining atomic.Bool  // the stop has begun
	served   atomic.Int64 // requests answered or failed, all protocols

	connsMu sync.Mutex
	conns   map[net.Conn]struct{} // open TCP (not HTTP) connections
}

// New opens every listener of opts, so that its ports are known and taken when
// it returns; nothing is answered before [Server.Run].
func New(opts Options, log *slog.Logger) (*Server, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	env := IdentityFromEnv()
	if opts.Identity.Pod == "" {
		opts.Identity.Pod = env.Pod
	}
	if opts.Identity.Namespace == "" {
		opts.Identity.Namespace = env.Namespace
	}
	if opts.Identity.Node == "" {
		opts.Identity.Node = env.Node
	}
	s := &Server{opts: opts, log: log, conns: map[net.Conn]struct{}{}}
	s.readyAt.Store(time.Now().Add(opts.SlowStart).UnixNano())
	for _, addr := range opts.HTTP {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, s.abandon(fmt.Errorf("--http %s: %w", addr, err))
		}
		s.http = append(s.http, l)
	}
	for _, addr := range opts.TCP {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, s.abandon(fmt.Errorf("--tcp %s: %w", addr, err))
		}
		s.tcp = append(s.tcp, l)
	}
	for _, addr := range opts.UDP {
		c, err := listenUDP(addr)
		if err != nil {
			return nil, s.abandon(fmt.Errorf("--udp %s: %w", addr, err))
		}
		s.udp = append(s.udp, c)
	}
	return s, nil
}

func (s *Server) abandon(err error) error {
	for _, l := range append(s.http, s.tcp...) {
		l.Close()
	}
	for _, c := range s.udp {
		c.Close()
	}
	return err
}

// Addrs are the addresses listened on, in the order of the options: HTTP,
// TCP, UDP.
func (s *Server) Addrs() (http, tcp, udp []net.Addr) {
	for _, l := range s.http {
		http = append(http, l.Addr())
	}
	for _, l := range s.tcp {
		tcp = append(tcp, l.Addr())
	}
	for _, c := range s.udp {
		udp = append(udp, c.LocalAddr())
	}
	return http, tcp, udp
}

// Run answers until ctx ends, then leaves without losing a request: it is at
// once no longer ready, goes on accepting for Options.Drain (a connection may
// be on its way through a proxy that has not heard yet) and asks HTTP clients
// to close theirs, then closes its listeners, lets requests under way end, at
// most Options.Grace, and returns. The error is that of a listener that
// failed, or tells that Grace was not enough.
func (s *Server) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	failed := make(chan error, len(s.http)+len(s.tcp)+len(s.udp))
	serve := func(f func() error) {
		wg.Go(func() {
			if err := f(); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
				failed <- err
			}
		})
	}
	web := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 30 * time.Second}
	for _, l := range s.http {
		serve(func() error { return web.Serve(l) })
	}
	for _, l := range s.tcp {
		serve(func() error { return s.serveTCP(l) })
	}
	for _, c := range s.udp {
		serve(func() error { return s.serveUDP(c) })
	}
	s.log.Info("answering", "http", s.opts.HTTP.String(), "tcp", s.opts.TCP.String(), "udp", s.opts.UDP.String(),
		"pod", s.opts.Identity.Pod, "node", s.opts.Identity.Node)

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	s.unready.Store(true)
	s.draining.Store(true)
	if err == nil {
		time.Sleep(s.opts.Drain)
	}

	for _, l := range s.tcp {
		l.Close()
	}
	grace, cancel := context.WithTimeout(context.Background(), s.opts.Grace)
	defer cancel()
	if e := web.Shutdown(grace); e != nil {
		web.Close()
		err = errors.Join(err, fmt.Errorf("HTTP requests still under way after --grace %v were cut: %w", s.opts.Grace, e))
	}
	for _, c := range s.udp {
		c.Close()
	}
	err = errors.Join(err, s.endTCP(grace))
	wg.Wait()
	s.log.Info("stopped", "answered", s.served.Load())
	return err
}

// ready says whether /readyz answers 200.
func (s *Server) ready() bool {
	return !s.unready.Load() && time.Now().UnixNano() >= s.readyAt.Load()
}

// begin counts a request, waits the delay and draws whether it shall fail.
func (s *Server) begin(ctx context.Context, extra time.Duration) (fail bool) {
	s.served.Add(1)
	if d := s.opts.Delay + extra; d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	return s.opts.FailureRate > 0 && rand.Float64() < s.opts.FailureRate
}
