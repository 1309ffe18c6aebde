package forward

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	// upstreamSize is the largest reply asked for over UDP, in bytes: what passes
	// every path unfragmented.
	upstreamSize = 1232
	// attemptTimeout is how long one upstream is listened to for one question.
	attemptTimeout = time.Second
	// suspectAfter failures in a row an upstream's health is checked. It may be
	// well: names exist that nobody answers for, and one asker can ask for many.
	suspectAfter = 3
	// tryEvery is how often an upstream that is down is asked a real question.
	tryEvery = 250 * time.Millisecond
)

// upstream is one server and what is known of it.
type upstream struct {
	addr    netip.AddrPort
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	observe func(...string) prometheus.Observer

	fails   atomic.Int32 // since the last answer
	dead    atomic.Bool  // it failed a health check and has not answered since
	tried   atomic.Int64 // when it was last asked while down, in Unix nanoseconds
	looping atomic.Bool  // what it is asked comes back to this server
	plain   atomic.Bool  // it does not understand EDNS
}

func (u *upstream) down() bool { return u.dead.Load() }

// suspect reports whether it is time to check the upstream's health.
func (u *upstream) suspect() bool {
	return !u.looping.Load() && (u.dead.Load() || u.fails.Load() >= suspectAfter)
}

// mayTry reports whether it is time to ask an upstream that is down.
func (u *upstream) mayTry(now time.Time) bool {
	last := u.tried.Load()
	return now.UnixNano()-last >= int64(tryEvery) && u.tried.CompareAndSwap(last, now.UnixNano())
}

// exchange asks one question, over TCP too if the reply was cut short, and
// keeps account of whether the upstream works.
func (u *upstream) exchange(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	if u.plain.Load() {
		m.Extra = nil
	}
	reply, err := u.once(ctx, "udp", m)
	if err == nil && reply.Truncated {
		// Where a firewall lets no TCP through, a part is better than nothing.
		if whole, tcpErr := u.once(ctx, "tcp", m); tcpErr == nil {
			reply = whole
		}
	}
	if err == nil && refusesEDNS(reply) && len(m.Extra) > 0 {
		m.Extra = nil
		if reply, err = u.once(ctx, "udp", m); err == nil && !refusesEDNS(reply) {
			u.plain.Store(true)
		}
	}
	if err != nil {
		// One whose answer nobody waited for any more has not failed, unless it was slow.
		if !errors.Is(ctx.Err(), context.Canceled) || time.Since(start) >= hedge {
			u.fails.Add(1)
		}
		return nil, fmt.Errorf("upstream %v: %w", u.addr, err)
	}
	u.fails.Store(0)
	u.dead.Store(false)
	u.observe("forward", u.addr.String(), rcodeName(reply.Rcode)).Observe(time.Since(start).Seconds())
	return reply, nil
}

// refusesEDNS reports whether a reply may be one of a server from before EDNS
// (RFC 6891 section 7): those say that they do not understand the question.
func refusesEDNS(reply *dns.Msg) bool {
	return reply.Rcode == dns.RcodeFormatError || reply.Rcode == dns.RcodeNotImplemented
}

func rcodeName(rcode int) string {
	if s, ok := dns.RcodeToString[rcode]; ok {
		return s
	}
	return strconv.Itoa(rcode)
}

// once sends a question and waits for its reply, from a port and with an
// identifier that nobody else can know (RFC 5452).
func (u *upstream) once(ctx context.Context, network string, m *dns.Msg) (*dns.Msg, error) {
	m.Id = uint16(rand.Uint32())
	out, err := m.Pack()
	if err != nil {
		return nil, err
	}
	conn, err := u.dial(ctx, network, u.addr.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	tcp := network == "tcp"
	if tcp {
		out = append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)
	}
	if _, err := conn.Write(out); err != nil {
		return nil, err
	}
	c := &dns.Conn{Conn: conn, UDPSize: 4096}
	for {
		reply, err := c.ReadMsg()
		if ctx.Err() != nil && err != nil {
			return nil, fmt.Errorf("no answer: %w", context.Cause(ctx))
		}
		if reply != nil && reply.Id == m.Id && reply.Response && sameQuestion(m, reply) {
			if err == nil || network == "udp" && reply.Truncated {
				return reply, nil
			}
		}
		var network net.Error
		if tcp || err != nil && (errors.As(err, &network) || errors.Is(err, net.ErrClosed)) {
			if err == nil {
				err = errors.New("reply to another question")
			}
			return nil, err
		}
		// A datagram that is not the reply may be a forgery: the reply may yet come.
	}
}

func sameQuestion(m, reply *dns.Msg) bool {
	if len(reply.Question) == 0 {
		// Servers may leave it out of an error.
		return reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeNameError
	}
	a, b := m.Question[0], reply.Question[0]
	return len(reply.Question) == 1 && a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}
