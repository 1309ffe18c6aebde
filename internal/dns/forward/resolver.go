// Package forward asks other DNS servers, and remembers what they say.
//
// In goes one question, out comes an upstream's answer or an error within two
// seconds. Answers are cached for as long as they hold, those that deny as RFC
// 2308 says; those asked for often are fetched anew before their end, and when
// no upstream answers, old ones are told for a while (RFC 8767). The package
// knows nothing of the cluster's own names, and reaches upstreams only through
// the dialer it is given.
package forward

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/time/rate"

	"fairway.dev/fairway/internal/dns/wire"
)

// Options of a Resolver.
type Options struct {
	// Upstreams are the servers to ask, the first one that works first. If
	// empty, they are read from ResolvConf, again whenever that file changes.
	Upstreams []netip.AddrPort
	// ResolvConf is "/etc/resolv.conf" if empty.
	ResolvConf string
	// Stubs are other servers for the names below a domain.
	Stubs map[string][]netip.AddrPort
	// Self are addresses that lead to this very server; they are never asked.
	Self []netip.Addr
	// Dial opens a socket to an upstream, "udp" or "tcp", an IP address and port; net.Dialer's if nil.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// CacheSize is how many answers are kept; 10,000 if zero.
	CacheSize int
	// ServeStale is how long past its end an answer may still be told when
	// no upstream answers; an hour if zero, not at all if negative.
	ServeStale time.Duration
	// MaxConcurrent is how many questions may be under way; 4096 if zero.
	MaxConcurrent int
	Logger        *slog.Logger
}

// Time limits.
const (
	// deadline is when a question fails if nobody has answered; two seconds is
	// what an asker has to wait at most.
	deadline = 1500 * time.Millisecond
	// staleAfter is how long an asker waits while there is an old answer to give.
	staleAfter = 400 * time.Millisecond
	// staleRetry is how long an old answer is told after no new one could be had.
	staleRetry = 5 * time.Second
	// prefetchPart of an answer's time, at its end, is when it is fetched anew if
	// it has been asked for prefetchHits times.
	prefetchPart = 10
	prefetchHits = 2
)

// Errors of Resolve.
var (
	// ErrBusy: too many questions are under way.
	ErrBusy = errors.New("too many questions to upstreams are under way")
	// ErrNoUpstream: no upstream answers, or there is none.
	ErrNoUpstream = errors.New("no upstream DNS server answers")
)

// Resolver asks upstreams. Its methods may be used concurrently; Run must be
// running for it to notice changes, upstreams that come back, and loops.
type Resolver struct {
	opts  Options
	log   *slog.Logger
	warn  *rate.Sometimes
	cache *cache
	m     *metrics

	mu     sync.RWMutex
	groups []*group // by suffix, the longest first; the last is for all names

	flightMu sync.Mutex
	flights  map[key]*flight
	wg       sync.WaitGroup
	life     context.Context
	end      context.CancelFunc

	probes probes
	// conf is what the file was like when it was read.
	conf fileState
}

// flight is one question under way, whoever waits for it.
type flight struct {
	done   chan struct{}
	answer *Answer
	err    error
}

// New makes a resolver.
func New(o Options) (*Resolver, error) {
	o.ResolvConf = cmp.Or(o.ResolvConf, "/etc/resolv.conf")
	o.CacheSize = cmp.Or(o.CacheSize, 10_000)
	o.ServeStale = cmp.Or(o.ServeStale, time.Hour)
	o.MaxConcurrent = cmp.Or(o.MaxConcurrent, 4096)
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Resolver{opts: o, log: o.Logger, warn: &rate.Sometimes{First: 1, Interval: 10 * time.Second}, m: newMetrics(),
		flights: map[key]*flight{}}
	r.life, r.end = context.WithCancel(context.Background())
	r.cache = newCache(o.CacheSize, max(0, o.ServeStale), r.m.evicted)
	r.probes.active = map[string]*upstream{}
	if err := r.configure(o.Upstreams); err != nil {
		return nil, err
	}
	return r, nil
}

// configure makes groups of upstreams; those that stay keep what is known of them.
func (r *Resolver) configure(upstreams []netip.AddrPort) error {
	if len(upstreams) == 0 {
		var err error
		r.conf = stateOf(r.opts.ResolvConf)
		upstreams, err = readResolvConf(r.opts.ResolvConf)
		r.mu.RLock()
		running := r.groups != nil
		r.mu.RUnlock()
		switch {
		case err != nil && running:
			// Who writes the file anew may not have finished.
			return fmt.Errorf("%w; upstreams stay as they were until there are others", err)
		case err != nil:
			// Cluster names need no upstream, so this is no reason not to serve them.
			r.log.Warn("no upstream DNS servers: names outside the cluster fail until there are; name them in the file or give them by --upstream",
				"file", r.opts.ResolvConf, "err", err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	known := map[netip.AddrPort]*upstream{}
	for _, g := range r.groups {
		for _, u := range g.upstreams {
			known[u.addr] = u
		}
	}
	make1 := func(suffix string, addrs []netip.AddrPort) (*group, error) {
		g := &group{r: r}
		if suffix != "" {
			b, ok := wire.AppendName(nil, strings.TrimSuffix(suffix, "."))
			if !ok {
				return nil, fmt.Errorf("stub domain %q: not a domain name", suffix)
			}
			g.suffix = b
		}
		for _, a := range addrs {
			if r.isSelf(a.Addr()) {
				r.log.Error("upstream DNS server is this server itself: not asked; give another by --upstream", "upstream", a)
				continue
			}
			u := known[a]
			if u == nil {
				u = &upstream{addr: a, dial: r.opts.Dial, observe: r.m.exchange.WithLabelValues}
			}
			g.upstreams = append(g.upstreams, u)
		}
		return g, nil
	}
	var groups []*group
	for suffix, addrs := range r.opts.Stubs {
		g, err := make1(suffix, addrs)
		if err != nil {
			return err
		}
		groups = append(groups, g)
	}
	sortGroups(groups)
	all, err := make1("", upstreams)
	if err != nil {
		return err
	}
	r.groups = append(groups, all)
	return nil
}

func (r *Resolver) isSelf(a netip.Addr) bool {
	for _, s := range r.opts.Self {
		if s.Unmap() == a.Unmap() {
			return true
		}
	}
	return false
}

// Run looks after the upstreams until ctx ends. It returns when every question
// under way has come to its end.
func (r *Resolver) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { r.watchResolvConf(ctx) })
	wg.Go(func() { r.checkHealth(ctx) })
	wg.Go(func() { r.checkLoops(ctx) })
	wg.Wait()
	r.flightMu.Lock()
	r.end()
	r.flightMu.Unlock()
	r.wg.Wait()
}

// Lookup returns a cached answer that still holds, or nil. It never waits.
func (r *Resolver) Lookup(q *wire.Query, now time.Time) *Answer {
	e := r.cache.get(q.Name, q.Type, q.DO, q.CheckingDisabled(), now)
	if e == nil || !e.answer.fresh(now) {
		return nil
	}
	r.m.request()
	r.hit(e, now)
	return e.answer
}

// hit counts a use of an entry that holds, and has it fetched anew if it is
// popular and near its end.
func (r *Resolver) hit(e *entry, now time.Time) {
	r.m.hit(e.answer)
	a := e.answer
	if e.hits.Add(1) < prefetchHits || !a.useful() {
		return
	}
	if left := a.ttl - now.Sub(a.stored); left > max(a.ttl/prefetchPart, time.Second) || e.fetching.Swap(true) {
		return
	}
	if _, err := r.fly(e.key); err == nil {
		r.m.prefetches.Inc()
	}
}

// Resolve answers q, from the cache or by asking. It returns within two
// seconds, earlier if ctx ends.
func (r *Resolver) Resolve(ctx context.Context, q *wire.Query) (*Answer, error) {
	return r.resolve(ctx, key{string(q.Name), q.Type, q.DO, q.CheckingDisabled()})
}

// ResolveName is Resolve for a name in wire form, small letters.
func (r *Resolver) ResolveName(ctx context.Context, name []byte, typ uint16) (*Answer, error) {
	return r.resolve(ctx, key{name: string(name), typ: typ})
}

func (r *Resolver) resolve(ctx context.Context, k key) (*Answer, error) {
	now := time.Now()
	r.m.request()
	e := r.cache.get([]byte(k.name), k.typ, k.dnssec, k.unchecked, now)
	if e != nil && e.answer.fresh(now) {
		r.hit(e, now)
		return e.answer, nil
	}
	r.m.misses.Inc()
	stale := e != nil && e.answer.useful()
	if stale && now.UnixNano() < e.retry.Load() {
		r.m.stale.Inc()
		return e.answer, nil
	}
	f, err := r.fly(k)
	if err != nil {
		if stale {
			r.m.stale.Inc()
			return e.answer, nil
		}
		return nil, err
	}
	wait := deadline
	if stale {
		wait = staleAfter
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-f.done:
		err = f.err
		if err == nil && (!stale || f.answer.useful()) {
			return f.answer, nil
		}
	case <-timer.C:
		err = fmt.Errorf("%w within %v", ErrNoUpstream, wait)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if stale {
		e.retry.Store(time.Now().Add(staleRetry).UnixNano())
		r.m.stale.Inc()
		return e.answer, nil
	}
	r.warn.Do(func() { r.log.Warn("question to upstreams failed", "name", wire.Text([]byte(k.name)), "err", err) })
	return nil, err
}

// fly asks the upstreams, or joins whoever is asking the same already: so a
// question that comes back to this server by way of an upstream goes no second round.
func (r *Resolver) fly(k key) (*flight, error) {
	r.flightMu.Lock()
	defer r.flightMu.Unlock()
	if f := r.flights[k]; f != nil {
		return f, nil
	}
	if r.life.Err() != nil {
		return nil, r.life.Err()
	}
	if len(r.flights) >= r.opts.MaxConcurrent {
		r.m.rejects.Inc()
		return nil, ErrBusy
	}
	f := &flight{done: make(chan struct{})}
	r.flights[k] = f
	r.wg.Go(func() {
		ctx, cancel := context.WithTimeout(r.life, deadline)
		defer cancel()
		f.answer, f.err = r.ask(ctx, k)
		r.flightMu.Lock()
		delete(r.flights, k)
		r.flightMu.Unlock()
		close(f.done)
	})
	return f, nil
}

// ask asks the upstreams in charge of the name and keeps their answer.
func (r *Resolver) ask(ctx context.Context, k key) (*Answer, error) {
	m := new(dns.Msg)
	m.RecursionDesired, m.CheckingDisabled = true, k.unchecked
	// Says that this resolver understands the flag in the answer (RFC 6840
	// section 5.7), for askers who trust it.
	m.AuthenticatedData = true
	m.Question = []dns.Question{{Name: wire.Text([]byte(k.name)), Qtype: k.typ, Qclass: dns.ClassINET}}
	m.SetEdns0(upstreamSize, k.dnssec)
	reply, err := r.groupFor(k.name).exchange(ctx, m)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	a, err := newAnswer(k, reply, now)
	if err != nil {
		r.m.drops.Inc()
		return nil, fmt.Errorf("upstream's answer cannot be told: %w", err)
	}
	// A failure never takes the place of an old answer.
	if old := r.cache.get([]byte(k.name), k.typ, k.dnssec, k.unchecked, now); a.useful() || old == nil || !old.answer.useful() {
		r.cache.put(k, a, now)
	}
	return a, nil
}

// groupFor finds the upstreams in charge of a name in wire form.
func (r *Resolver) groupFor(name string) *group {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, g := range r.groups {
		if g.covers(name) {
			return g
		}
	}
	return r.groups[len(r.groups)-1]
}
