package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"fairway.dev/fairway/internal/proxy/conntrack"
	"fairway.dev/fairway/internal/proxy/health"
	"fairway.dev/fairway/internal/proxy/source"
	"fairway.dev/fairway/internal/proxy/state"
)

// Proxy is the data plane of one node. Make it with New, work it with Run.
type Proxy struct {
	cfg     Config
	log     *slog.Logger
	health  *health.Proxy
	metrics *metrics
	flows   *flows
	synced  chan struct{}

	barriers chan chan struct{}
	stopped  chan struct{} // closed when Run has ended
}

// New checks a Config and returns its proxy.
func New(cfg Config) (*Proxy, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.HealthTimeout == 0 {
		cfg.HealthTimeout = health.DefaultTimeout
	}
	p := &Proxy{
		cfg: cfg, log: cfg.Logger, metrics: newMetrics(),
		health:   health.NewProxy(cfg.HealthTimeout, families...),
		synced:   make(chan struct{}),
		barriers: make(chan chan struct{}), stopped: make(chan struct{}),
	}
	p.flows = newFlows(conntrack.New(cfg.NetNS), p.log, p.metrics)
	return p, nil
}

// Synced is closed when the kernel holds the complete table for the first time.
func (p *Proxy) Synced() <-chan struct{} { return p.synced }

// Retry times of a failed sync, and the least time between two repairs of what
// others changed: somebody who undoes every repair must not keep a CPU busy.
const (
	minRetry  = 100 * time.Millisecond
	maxRetry  = 30 * time.Second
	driftPace = time.Second
	// nodeGrace is how long a Node may be missing before that is worth a
	// warning: a kubelet makes it a moment after it has begun.
	nodeGrace = 10 * time.Second
)

// Run works, once, until ctx ends and returns when everything it started has stopped.
// What is programmed stays in the kernel: traffic goes on. Run does not close
// the Programmer. It fails only if the lock cannot be had for
// another reason than that somebody has it, or a server address cannot and the
// Config says that this is fatal.
func (p *Proxy) Run(ctx context.Context) error {
	defer close(p.stopped)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	if err := p.serve(ctx, &wg); err != nil {
		return err
	}
	release, err := p.lock(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil // asked to end while it waited
		}
		return err
	}
	defer release()
	// Not before: a proxy that waits would collect the changes of all that time.
	sub := p.cfg.Source.Subscribe(p.cfg.NodeName)
	defer sub.Close()
	wg.Go(func() { p.flows.run(ctx) })
	l := loop{Proxy: p, start: time.Now(), table: state.NewTable(p.cfg.view(nil)), pending: pending{replace: true}}
	l.checks = health.NewServices(p.listen, p.health.Healthy, p.log)
	defer l.checks.Close()
	l.run(ctx, sub)
	return nil
}

func (p *Proxy) listen(ctx context.Context, network, address string) (net.Listener, error) {
	if p.cfg.NetNS != nil {
		return p.cfg.NetNS.Listen(ctx, network, address)
	}
	var lc net.ListenConfig
	return lc.Listen(ctx, network, address)
}

// serve starts the healthz and metrics servers.
func (p *Proxy) serve(ctx context.Context, wg *sync.WaitGroup) error {
	start := func(what, address string, h http.Handler) error {
		if address == "" {
			return nil
		}
		done, err := health.Serve(ctx, p.listen, address, h)
		if err != nil {
			err = fmt.Errorf("serve %s on %s: %w", what, address, err)
			if p.cfg.BindHardFail {
				return err
			}
			p.log.Error("cannot serve, trying again", "what", what, "address", address, "err", err)
		}
		wg.Go(func() {
			for err != nil {
				select {
				case <-ctx.Done():
					return
				case <-time.After(5 * time.Second):
					done, err = health.Serve(ctx, p.listen, address, h)
				}
			}
			<-done
		})
		return nil
	}
	return errors.Join(
		start("healthz", p.cfg.HealthzAddress, p.health.Handler(p.metrics.countHealth)),
		start("metrics", p.cfg.MetricsAddress, p.metrics.handler(p.health, &p.cfg)))
}

// loop is Run's state; one goroutine owns it.
type loop struct {
	*Proxy
	start  time.Time
	table  *state.Table
	checks *health.Services

	node      *source.Node
	cidrs     []netip.Prefix
	facts     state.NodeFacts
	factsSet  bool
	pending   pending
	retry     time.Duration
	lastDrift time.Time
	first     bool
	// noNode fires when a Node that is missing should have come.
	noNode <-chan time.Time
}

// pending is what has to follow once the kernel holds the table; it outlives
// failed syncs.
type pending struct {
	replace  bool // the kernel's state is not known to be the table's so far
	health   []state.HealthCheck
	stale    []state.Stale
	triggers []trigger
	barriers []chan struct{}
}

// trigger is when a change happened, for the metric of how long it took.
type trigger struct {
	at time.Time
	v6 bool
}

func (l *loop) run(ctx context.Context, sub *source.Subscription) {
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-sub.Changed():
			l.take(sub.Take())
			if l.retry > 0 {
				continue // the retry takes it along
			}
		case b := <-l.barriers:
			l.pending.barriers = append(l.pending.barriers, b)
			if !l.factsSet || l.retry > 0 {
				continue // the first sync, or the retry, takes it along
			}
			l.take(sub.Take())
		case <-l.cfg.Programmer.Drift():
			if !l.first {
				continue // the first sync looks at everything anyhow
			}
			l.metrics.drift.Inc()
			if wait := driftPace - time.Since(l.lastDrift); wait > 0 {
				l.pending.replace = true
				retry.Reset(wait)
				continue
			}
			l.lastDrift = time.Now()
			l.log.Warn("somebody else changed what is programmed, putting it right")
			l.pending.replace = true
		case <-l.noNode:
			if l.node == nil {
				l.log.Warn("there is no Node of this name; topology and health checks miss it", "name", l.cfg.NodeName)
			}
			continue
		case <-retry.C:
			l.lastDrift = time.Now()
			l.checks.Retry()
		}
		if err := l.sync(ctx); err != nil && ctx.Err() == nil {
			l.retry = min(max(2*l.retry, minRetry), maxRetry)
			l.log.Error("programming failed; comparing everything with the kernel and trying again", "err", err, "in", l.retry)
			retry.Reset(l.retry)
			continue
		}
		l.retry = 0
		if l.checks.Failing() {
			retry.Reset(maxRetry)
		}
	}
}

// take brings news into the table.
func (l *loop) take(c source.Changes) {
	now := time.Now()
	l.health.Queued()
	l.metrics.queued(now)
	l.metrics.svcTotal.Add(float64(len(c.Services)))
	l.metrics.slicesTotal.Add(float64(len(c.Slices)))
	l.metrics.svcPending.Set(float64(len(c.Services)))
	l.metrics.slicesPending.Set(float64(len(c.Slices)))
	if c.NodeChanged {
		l.node = c.Node
		l.table.SetView(l.cfg.view(c.Node))
		l.health.SetEligible(c.Node != nil && !c.Node.Leaving)
		if c.Node == nil {
			l.noNode = time.After(nodeGrace)
		}
	}
	if c.CIDRsChanged {
		l.cidrs = c.ServiceCIDRs
	}
	for _, s := range c.Services {
		if s.New == nil {
			l.table.DeleteService(s.Name)
		} else {
			l.table.SetService(s.New)
		}
	}
	for _, s := range c.Slices {
		l.table.SetSlice(s.Old, s.New)
		// What changed before this proxy was there was not late on its account.
		if s.New != nil && s.New.Trigger.After(l.start) {
			l.pending.triggers = append(l.pending.triggers, trigger{s.New.Trigger, s.New.V6})
		}
	}
	l.factsSet = true
}

// sync makes the kernel hold the table and then does what hangs on it.
func (l *loop) sync(ctx context.Context) error {
	if !l.factsSet {
		return nil // nothing has been read yet
	}
	start := time.Now()
	if f := l.cfg.facts(l.node, l.cidrs); !l.first || !f.Equal(l.facts) {
		if err := l.cfg.Programmer.Configure(ctx, f); err != nil {
			l.fail(err)
			return fmt.Errorf("configure: %w", err)
		}
		if !slices.Equal(l.facts.NodePortAddrs, f.NodePortAddrs) {
			l.checks.SetAddrs(l.checkAddrs(f.NodePortAddrs))
		}
		l.facts = f
	}
	res := l.table.Sync()
	l.pending.health = append(l.pending.health, res.Health...)
	l.pending.stale = append(l.pending.stale, res.Stale...)

	full := l.pending.replace
	switch {
	case full:
		if err := l.cfg.Programmer.Replace(ctx, l.table.All()); err != nil {
			l.fail(err)
			return fmt.Errorf("replace: %w", err)
		}
	case len(res.Diff.Set)+len(res.Diff.Remove) > 0:
		if err := l.cfg.Programmer.Apply(ctx, res.Diff); err != nil {
			l.fail(err)
			return fmt.Errorf("apply: %w", err)
		}
		l.metrics.setFrontends.Add(float64(len(res.Diff.Set)))
		l.metrics.removeFrontends.Add(float64(len(res.Diff.Remove)))
	}
	l.done(start, full, &res.Diff)
	return nil
}

// fail notes that the kernel may hold anything now.
func (l *loop) fail(error) {
	l.pending.replace = true
	for _, f := range families {
		l.metrics.failures.WithLabelValues(f).Inc()
	}
}

// done follows a sync that succeeded.
func (l *loop) done(start time.Time, full bool, d *state.Diff) {
	now := time.Now()
	touched := [2]bool{full, full}
	for _, f := range d.Set {
		touched[family(f.Key.Addr)] = true
	}
	for _, k := range d.Remove {
		touched[family(k.Addr)] = true
	}
	l.metrics.synced(now, now.Sub(start), full, touched)
	l.metrics.svcPending.Set(0)
	l.metrics.slicesPending.Set(0)
	l.metrics.table(l.table.Stats())
	for _, t := range l.pending.triggers {
		i := 0
		if t.v6 {
			i = 1
		}
		l.metrics.programming.WithLabelValues(families[i]).Observe(now.Sub(t.at).Seconds())
	}
	l.health.Updated()
	for _, h := range l.pending.health {
		l.checks.Set(h)
	}
	if !l.first {
		l.first = true
		l.metrics.firstSync.Set(now.Sub(l.start).Seconds())
		s := l.table.Stats()
		l.log.Info("programmed", "services", s.Services, "slices", s.Slices, "frontends", s.Frontends, "took", now.Sub(start), "since start", now.Sub(l.start))
		close(l.synced)
		// Endpoints may have gone while no proxy was there.
		l.flows.reconcile(l.table.Serving())
	}
	l.flows.add(l.pending.stale)
	for _, b := range l.pending.barriers {
		close(b)
	}
	l.pending = pending{}
}

func family(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

// checkAddrs is where health check node ports listen: where node ports answer.
func (l *loop) checkAddrs(prefixes []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	var local []netip.Addr
	for _, p := range prefixes {
		if p.Bits() == 0 {
			out = append(out, p.Addr())
			continue
		}
		if local == nil {
			local = l.localAddrs()
		}
		for _, a := range local {
			if p.Contains(a) {
				out = append(out, a)
			}
		}
	}
	return out
}

func (l *loop) localAddrs() (out []netip.Addr) {
	read := func() error {
		list, err := net.InterfaceAddrs()
		for _, a := range list {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok && !ip.IsLinkLocalUnicast() {
					out = append(out, ip.Unmap())
				}
			}
		}
		return err
	}
	var err error
	if l.cfg.NetNS != nil {
		err = l.cfg.NetNS.Do(read)
	} else {
		err = read()
	}
	if err != nil {
		l.log.Error("cannot list this node's addresses; health check node ports do not listen on some", "err", err)
	}
	return out
}
