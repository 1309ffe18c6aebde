// Package dns gives Services names: a DNS server for a Kubernetes cluster.
//
// In go the API's Services, EndpointSlices and Namespaces, and DNS questions;
// out come answers by the Kubernetes DNS specification, and for all other names
// those of the machine's own DNS servers. It talks to the API through client-go
// and to nothing else, and touches no network but the sockets it opens.
//
// Its parts are rooms of their own: zone has the cluster's names, forward asks
// other servers, server has the sockets, wire the message format. This package
// joins them: one DNS for a process, with one server for each node it stands for.
package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/client-go/kubernetes"

	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/dns/server"
	"fairway.dev/fairway/internal/dns/zone"
	"fairway.dev/fairway/internal/netns"
)

// Options of a DNS. Only Client is needed.
type Options struct {
	// Client is where the names come from. It must be allowed to get, list and
	// watch services, endpointslices and namespaces, and pods with zone.PodsVerified.
	Client kubernetes.Interface
	// Publisher is what RunNode writes EndpointSlices with; Client if nil. It
	// must be allowed to create, update and delete them in kube-system.
	Publisher kubernetes.Interface

	// Addrs are what this process itself serves on, in its own network; none
	// if it only serves nodes.
	Addrs []netip.AddrPort
	// HTTP are the addresses, "host:port", on which /health, /ready and /metrics are served.
	HTTP []string
	// Lameduck is how long the process's own server goes on answering after
	// it has been told to stop, not ready any more, so that askers learn of it.
	Lameduck time.Duration

	// Domain, TTL, Pods and ReverseZones: see zone.Options.
	Domain       string
	TTL          uint32
	Pods         zone.PodNames
	ReverseZones []netip.Prefix

	// Upstreams, ResolvConf, Stubs, Dial, CacheSize, ServeStale and MaxConcurrent: see forward.Options.
	Upstreams     []netip.AddrPort
	ResolvConf    string
	Stubs         map[string][]netip.AddrPort
	Dial          func(ctx context.Context, network, address string) (net.Conn, error)
	CacheSize     int
	ServeStale    time.Duration
	MaxConcurrent int
	// NoForward answers for the cluster's names only.
	NoForward bool
	// ServiceIPs are the ClusterIPs that lead to this DNS; they are never taken for upstreams.
	ServiceIPs []netip.Addr

	// OnSync, if not nil, is called once, a moment after all names have
	// arrived: a process of its own gives memory back then.
	OnSync func()

	// MaxUDPSize and PerClient: see server.Options.
	MaxUDPSize, PerClient int

	Logger *slog.Logger
}

// DNS is a process's cluster DNS. Its methods may be used concurrently.
type DNS struct {
	opts     Options
	log      *slog.Logger
	store    *zone.Store
	resolver *forward.Resolver // nil with NoForward
	registry *prometheus.Registry

	// listening is true while the process's own server answers and is not about to stop.
	listening atomic.Bool

	// addr is where the process's own server listens, once it does.
	addr atomic.Pointer[netip.AddrPort]
}

// New checks the options. Nothing is opened or asked before Run.
func New(o Options) (*DNS, error) {
	if o.Client == nil {
		return nil, errors.New("dns: no API client to learn names from")
	}
	if o.Publisher == nil {
		o.Publisher = o.Client
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	d := &DNS{opts: o, log: o.Logger, registry: prometheus.NewRegistry()}
	programmed := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "coredns", Subsystem: "kubernetes", Name: "dns_programming_duration_seconds",
		Help:    "Histogram of the time (in seconds) it took to program a dns instance.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 20),
	}, []string{"service_kind"})
	observe := programmed.WithLabelValues("headless_with_selector")
	var err error
	d.store, err = zone.New(zone.Options{Domain: o.Domain, TTL: o.TTL, Pods: o.Pods, ReverseZones: o.ReverseZones,
		NameServer: ServiceNamespace + "/" + ServiceName,
		Programmed: func(t time.Duration) { observe.Observe(t.Seconds()) }, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	d.registry.MustRegister(programmed, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if !o.NoForward {
		for stub := range o.Stubs {
			if own := "." + d.store.Domain(); strings.HasSuffix("."+strings.Trim(strings.ToLower(stub), "."), own) {
				return nil, fmt.Errorf("stub domain %s is within the cluster domain %s, all of whose names this server answers for itself", stub, d.store.Domain())
			}
		}
		self := append([]netip.Addr(nil), o.ServiceIPs...)
		for _, a := range o.Addrs {
			if !a.Addr().IsUnspecified() && a.Port() == 53 {
				self = append(self, a.Addr())
			}
		}
		d.resolver, err = forward.New(forward.Options{Upstreams: o.Upstreams, ResolvConf: o.ResolvConf, Stubs: o.Stubs, Self: self,
			Dial: o.Dial, CacheSize: o.CacheSize, ServeStale: o.ServeStale, MaxConcurrent: o.MaxConcurrent, Logger: o.Logger})
		if err != nil {
			return nil, err
		}
		d.registry.MustRegister(d.resolver)
	}
	return d, nil
}

// Registry is where the metrics are registered, for a process that serves them itself.
func (d *DNS) Registry() *prometheus.Registry { return d.registry }

// Run keeps the names up to date, looks after upstreams and serves on Addrs
// and HTTP, until ctx ends; then it returns when everything has stopped. It
// fails at once if it cannot listen.
func (d *DNS) Run(ctx context.Context) error {
	own, err := d.listenOwn(ctx)
	if err != nil {
		return err
	}
	web, err := d.listenHTTP(ctx)
	if err != nil {
		if own != nil {
			own.Close()
		}
		return err
	}
	// What answers goes on for a while after ctx has ended.
	late, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var wg sync.WaitGroup
	wg.Go(func() { d.store.Watch(late, d.opts.Client) }) // what is told until the end is still true
	if d.opts.OnSync != nil {
		wg.Go(func() {
			if d.waitSync(ctx) && sleep(ctx, time.Second) {
				d.opts.OnSync()
			}
		})
	}
	if d.resolver != nil {
		wg.Go(func() { d.resolver.Run(late) })
	}
	if own != nil {
		wg.Go(func() { own.Run(late) })
		at := own.UDPAddr()
		d.addr.Store(&at)
		d.log.Info("DNS server is listening", "addrs", d.opts.Addrs)
	}
	d.listening.Store(true)
	wg.Go(func() { d.serveHTTP(late, web) })
	<-ctx.Done()
	d.listening.Store(false)
	if d.opts.Lameduck > 0 && own != nil {
		d.log.Info("DNS server stops soon", "in", d.opts.Lameduck)
		time.Sleep(d.opts.Lameduck)
	}
	end()
	wg.Wait()
	return nil
}

func (d *DNS) listenOwn(ctx context.Context) (*server.Server, error) {
	if len(d.opts.Addrs) == 0 {
		return nil, nil
	}
	s, err := d.newServer(ctx, d.opts.Addrs, nil, d.log)
	if err == nil {
		err = d.registry.Register(s)
	}
	return s, err
}

func (d *DNS) newServer(ctx context.Context, addrs []netip.AddrPort, ns *netns.NS, log *slog.Logger) (*server.Server, error) {
	return server.New(ctx, server.Options{Addrs: addrs, NetNS: ns, Store: d.store, Resolver: d.resolver,
		MaxUDPSize: d.opts.MaxUDPSize, PerClient: d.opts.PerClient, Logger: log})
}

// Addr is where the process's own server listens; the zero value before it does.
func (d *DNS) Addr() netip.AddrPort {
	if a := d.addr.Load(); a != nil {
		return *a
	}
	return netip.AddrPort{}
}

// Ready is nil when every question gets its true answer.
func (d *DNS) Ready() error {
	switch {
	case !d.store.Synced():
		return errors.New("the names have not all arrived from the API yet")
	case !d.listening.Load():
		return errors.New("not listening")
	}
	return nil
}

// Node is a node that this process serves.
type Node struct {
	Name string
	Zone string // its topology zone; may be empty
	// NetNS is the node's network; nil for the process's own.
	NetNS *netns.NS
	// Addrs are the node's own addresses, at most one of each family, where its
	// Pods' questions arrive by way of the Service.
	Addrs []netip.Addr
	// Port is 53 if zero, or, where another program has that, otherPort: nobody
	// but the Service needs to know it.
	Port   uint16
	Logger *slog.Logger
}

// RunNode serves one node until ctx ends; Run must be running beside it. Once
// the names are there it publishes the node's addresses as endpoints of the
// Service (see EnsureService), and takes them back at its end.
func (d *DNS) RunNode(ctx context.Context, n Node) error {
	log := cmp.Or(n.Logger, d.log).With("node", n.Name)
	s, port, err := d.listenNode(ctx, n, log)
	if err != nil {
		return fmt.Errorf("serve DNS on node %s: %w", n.Name, err)
	}
	n.Port = port
	if err := d.registry.Register(s); err == nil {
		defer d.registry.Unregister(s)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.Run(ctx) })
	log.Info("DNS server is listening", "addrs", n.Addrs, "port", n.Port)
	if !d.waitSync(ctx) {
		return nil
	}
	d.publish(ctx, n, log)
	<-ctx.Done()
	// The API may be gone already; then so is whoever reads the slices.
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := Unpublish(bye, d.opts.Publisher, n.Name); err != nil {
		log.Debug("take back the DNS server's endpoints", "err", err)
	}
	return nil
}

// otherPort is where a node's server listens if somebody else has port 53.
const otherPort = 10053

// listenNode opens a node's sockets and says on which port. A node's address
// may take a moment to be usable: IPv6 looks for duplicates first.
func (d *DNS) listenNode(ctx context.Context, n Node, log *slog.Logger) (*server.Server, uint16, error) {
	port := cmp.Or(n.Port, 53)
	for begin := time.Now(); ; {
		var addrs []netip.AddrPort
		for _, a := range n.Addrs {
			addrs = append(addrs, netip.AddrPortFrom(a, port))
		}
		s, err := d.newServer(ctx, addrs, n.NetNS, log)
		switch {
		case err == nil:
			return s, port, nil
		case errors.Is(err, syscall.EADDRINUSE) && n.Port == 0 && port != otherPort:
			log.Warn("port 53 is taken by another program; the Service will lead to another port", "port", otherPort, "err", err)
			port = otherPort
		case errors.Is(err, syscall.EADDRNOTAVAIL) && time.Since(begin) < 10*time.Second && sleep(ctx, 100*time.Millisecond):
		default:
			return nil, 0, err
		}
	}
}

// waitSync waits for all names to arrive, and reports false if ctx ends before.
func (d *DNS) waitSync(ctx context.Context) bool {
	for !d.store.Synced() {
		if !sleep(ctx, 20*time.Millisecond) {
			return false
		}
	}
	return true
}

// sleep waits, and reports false if ctx ends before.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// publish tries until it succeeds or ctx ends.
func (d *DNS) publish(ctx context.Context, n Node, log *slog.Logger) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := Publish(ctx, d.opts.Publisher, n)
		if err == nil || ctx.Err() != nil {
			return
		}
		log.Warn("publish the DNS server's endpoints; trying again", "in", wait, "err", err)
		sleep(ctx, wait)
	}
}

// listenHTTP opens the sockets for health, readiness and metrics.
func (d *DNS) listenHTTP(ctx context.Context) ([]net.Listener, error) {
	var out []net.Listener
	for _, addr := range d.opts.HTTP {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			for _, l := range out {
				l.Close()
			}
			return nil, fmt.Errorf("listen for health, readiness and metrics: %w", err)
		}
		out = append(out, l)
	}
	return out, nil
}

// serveHTTP serves on the listeners until ctx ends.
func (d *DNS) serveHTTP(ctx context.Context, listeners []net.Listener) {
	srv := &http.Server{Handler: d.Handler(), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug)}
	var wg sync.WaitGroup
	for _, l := range listeners {
		wg.Go(func() { _ = srv.Serve(l) }) // ends with Close
	}
	<-ctx.Done()
	srv.Close()
	wg.Wait()
}
