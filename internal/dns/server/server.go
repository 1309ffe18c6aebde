// Package server is a DNS server's sockets.
//
// In come questions over UDP and TCP, out go answers: for the cluster's names
// from a zone.Store, for all others from a forward.Resolver. One server stands
// for one node, its sockets in that node's network namespace; any number of
// servers may share a store and a resolver. What one asker sends in excess does
// not keep another's questions waiting.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/dns/zone"
	"fairway.dev/fairway/internal/netns"
)

// Options of a Server.
type Options struct {
	// Addrs are served on UDP and TCP. With port 0 the two get ports of their own, see Addrs.
	Addrs []netip.AddrPort
	// NetNS is where the sockets are opened; nil for the process's own.
	NetNS *netns.NS
	Store *zone.Store
	// Resolver answers for other names; they are refused if it is nil.
	Resolver *forward.Resolver
	// MaxUDPSize is the largest answer over UDP, in bytes; 1232 if zero, which
	// passes every path unfragmented. An asker that takes less gets less.
	MaxUDPSize int
	// PerClient is how many questions to upstreams one asker's address may have
	// under way; 256 if zero.
	PerClient int
	// PerClientConns and MaxConns limit TCP connections; 64 and 2048 if zero.
	PerClientConns, MaxConns int
	// Sockets is how many UDP sockets share each address; 16 if zero.
	Sockets int
	Logger  *slog.Logger
}

// Server is listening from New on, and answers while Run runs.
type Server struct {
	opts    Options
	log     *slog.Logger
	label   string
	udp     []*udpSocket
	tcp     []*tcpListener
	stats   []*stats
	clients *limiter
	conns   *limiter
	pool    *batchPool
	wg      sync.WaitGroup
	ctx     context.Context
	panics  atomic.Uint64
}

// New opens the server's sockets. It fails if an address is not there or taken.
func New(ctx context.Context, o Options) (*Server, error) {
	o.MaxUDPSize = cmp.Or(o.MaxUDPSize, 1232)
	o.PerClient = cmp.Or(o.PerClient, 256)
	o.PerClientConns = cmp.Or(o.PerClientConns, 64)
	o.MaxConns = cmp.Or(o.MaxConns, 2048)
	o.Sockets = cmp.Or(o.Sockets, 16)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case o.Store == nil:
		return nil, errors.New("serve DNS: no store to answer from")
	case len(o.Addrs) == 0:
		return nil, errors.New("serve DNS: no address to listen on")
	case o.MaxUDPSize < wire.MinSize || o.MaxUDPSize > 4096:
		return nil, fmt.Errorf("serve DNS: answers of at most %d bytes over UDP: must be between %d and 4096", o.MaxUDPSize, wire.MinSize)
	}
	s := &Server{opts: o, log: o.Logger, label: "dns://" + o.Addrs[0].String(),
		clients: newLimiter(o.PerClient), conns: newLimiter(o.PerClientConns), pool: newBatchPool(o.MaxUDPSize)}
	for _, addr := range o.Addrs {
		conns, err := listenUDP(ctx, o.NetNS, addr, o.Sockets)
		if err != nil {
			s.close()
			return nil, err
		}
		for _, c := range conns {
			u, err := s.newUDP(c)
			if err != nil {
				s.close()
				return nil, err
			}
			s.udp = append(s.udp, u)
		}
		l, err := listenTCP(ctx, o.NetNS, addr)
		if err != nil {
			s.close()
			return nil, err
		}
		t := &tcpListener{s: s, l: l, stats: s.newStats()}
		s.tcp = append(s.tcp, t)
	}
	return s, nil
}

func (s *Server) newStats() *stats {
	st := &stats{}
	s.stats = append(s.stats, st)
	return st
}

// UDPAddr and TCPAddr are where the first address is served, for callers that asked for port 0.
func (s *Server) UDPAddr() netip.AddrPort {
	return s.udp[0].conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// TCPAddr is UDPAddr's sibling.
func (s *Server) TCPAddr() netip.AddrPort { return s.tcp[0].l.Addr().(*net.TCPAddr).AddrPort() }

// Run answers until ctx ends, and returns when the sockets are closed and the
// last answer is on its way.
func (s *Server) Run(ctx context.Context) error {
	s.ctx = ctx
	for _, u := range s.udp {
		s.wg.Go(u.run)
	}
	for _, t := range s.tcp {
		s.wg.Go(t.run)
	}
	<-ctx.Done()
	s.close()
	s.wg.Wait()
	return nil
}

// Close gives up the sockets of a server that is not run.
func (s *Server) Close() { s.close() }

func (s *Server) close() {
	for _, u := range s.udp {
		u.conn.Close()
	}
	for _, t := range s.tcp {
		t.l.Close()
	}
}

// guard, deferred, keeps a mistake in dealing with one question from ending the
// server for all.
func (s *Server) guard() {
	if r := recover(); r != nil {
		s.panics.Add(1)
		s.log.Error("a question could not be dealt with: a mistake in this program; please report it", "panic", r, "stack", string(debug.Stack()))
	}
}

// step is what is left to do about a question after the first look.
type step uint8

const (
	done  step = iota // the reply is there
	drop              // nothing: no answer is due
	ask               // an upstream
	alias             // what a CNAME of the cluster leads to
)

// look answers a datagram as far as that takes no waiting. buf is room for the
// reply, udp says which limits hold. The cluster's own part of an answer that
// is not whole yet is in the reply.
func (s *Server) look(q *wire.Query, msg, buf []byte, udp bool, sn *seen) ([]byte, []byte, step) {
	sn.queryLen = len(msg)
	r := &wire.Reply{}
	verdict := q.Parse(msg)
	if verdict == wire.Drop {
		return nil, nil, drop
	}
	size := wire.MaxSize
	if udp {
		size = q.ReplySize(s.opts.MaxUDPSize)
	}
	r.Start(q, buf, size)
	most := uint16(s.opts.MaxUDPSize)
	sn.typ, sn.do, sn.source, sn.zone = q.Type, q.DO, fromNobody, zoneOther
	if verdict == wire.Refuse {
		sn.rcode = q.Rcode
		return r.Finish(q.Rcode, 0, most), nil, done
	}
	if q.Class != dns.ClassINET {
		sn.rcode = dns.RcodeRefused
		return r.Finish(dns.RcodeRefused, 0, most), nil, done
	}
	out := s.opts.Store.Answer(q, r)
	if out.Mine {
		sn.zone, sn.source, sn.rcode = zoneCluster, fromCluster, out.Rcode
		if out.Alias != nil {
			return nil, out.Alias, alias
		}
		flags := out.Flags
		if s.opts.Resolver != nil {
			flags |= wire.RecursionAvailable
		}
		return r.Finish(out.Rcode, flags, most), nil, done
	}
	if s.opts.Resolver == nil || !q.RecursionDesired() || q.Type == dns.TypeAXFR || q.Type == dns.TypeIXFR || s.opts.Resolver.SawProbe(q) {
		sn.rcode = dns.RcodeRefused
		return r.Finish(dns.RcodeRefused, 0, most), nil, done
	}
	now := time.Now()
	if a := s.opts.Resolver.Lookup(q, now); a != nil {
		sn.source, sn.rcode = fromCache, a.Rcode()
		return a.Write(q, buf, size, most, now), nil, done
	}
	return nil, nil, ask
}

// refuse answers that there is too much under way.
func (s *Server) refuse(q *wire.Query, buf []byte, sn *seen) []byte {
	var r wire.Reply
	r.Start(q, buf, wire.MinSize)
	r.Error = dns.ExtendedErrorCodeProhibited
	sn.rcode, sn.source = dns.RcodeRefused, fromNobody
	return r.Finish(dns.RcodeRefused, wire.RecursionAvailable, uint16(s.opts.MaxUDPSize))
}

// wait finishes, by asking upstreams, what look left to do. It takes up to
// two seconds.
func (s *Server) wait(q *wire.Query, todo step, target []byte, udp bool, sn *seen) []byte {
	size := wire.MaxSize
	if udp {
		size = q.ReplySize(s.opts.MaxUDPSize)
	}
	most := uint16(s.opts.MaxUDPSize)
	if todo == alias {
		return s.follow(q, target, size, sn)
	}
	sn.source = fromUpstream
	a, err := s.opts.Resolver.Resolve(s.ctx, q)
	if err == nil {
		sn.rcode = a.Rcode()
		return a.Write(q, nil, size, most, time.Now())
	}
	var r wire.Reply
	r.Start(q, make([]byte, 0, 512), wire.MinSize)
	r.Error = dns.ExtendedErrorCodeNoReachableAuthority
	sn.rcode = dns.RcodeServerFailure
	if errors.Is(err, forward.ErrBusy) {
		sn.rcode, r.Error = dns.RcodeRefused, dns.ExtendedErrorCodeProhibited
	}
	return r.Finish(sn.rcode, wire.RecursionAvailable, most)
}
