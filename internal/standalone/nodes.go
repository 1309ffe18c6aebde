package standalone

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/announce"
	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/dns"
	"fairway.dev/fairway/internal/lb/daemon"
	"fairway.dev/fairway/internal/node"
	"fairway.dev/fairway/internal/proxy"
	"fairway.dev/fairway/internal/proxy/nft"
	"fairway.dev/fairway/internal/version"
)

// nodeOptions are what both running the nodes and cleaning up after them need.
func nodeOptions(o Options, n Network) node.Options {
	return node.Options{
		Prefix:    Prefix(o.DataDir),
		Nodes:     o.Nodes,
		Zones:     o.Zones,
		NodeCIDRs: n.Nodes,
		PodCIDRs:  n.Pods,
		Host:      o.Host,
		DataDir:   o.DataDir,
	}
}

// startNodes makes the node network, lets the API listen on it, and runs the
// nodes with all that belongs on each.
func (s *system) startNodes(ctx context.Context) (string, error) {
	o := nodeOptions(s.opts, s.net)
	o.ClientConfig = func(name string) (*rest.Config, error) { return s.api.ClientConfig(apiserver.Node(name)) }
	o.ServingCert, o.ClientCAs = s.api.NodeServingCert, s.api.ClientCAs()
	o.ClusterDNS, o.ClusterDomain = dns.ServiceIPs(s.net.Services), s.opts.ClusterDomain
	o.Version = version.Kubernetes
	o.Logger = s.log.With("part", "node")
	control, err := s.api.ClientConfig(apiserver.Admin())
	if err != nil {
		return "", err
	}
	o.Control = control
	o.Unrouted = s.unrouted
	if !s.opts.Host {
		o.APIFromNodes = fmt.Sprintf("https://%s", netip.AddrPortFrom(s.gateways()[0], uint16(s.opts.APIPort)))
	}
	first := make(chan struct{})
	var once sync.Once
	planes := newCountdown(o.Nodes)
	o.OnNode = func(ctx context.Context, h node.Handle) { s.runNode(ctx, h, planes) }

	nodes, err := node.New(o)
	if err != nil {
		return "", err
	}
	// Undone after the nodes have stopped, while the network is nobody's.
	s.stops = append(s.stops, func() {
		if err := cleanup(context.Background(), s.opts, s.net); err != nil {
			s.log.Error("clean-up", "error", err)
		}
	})
	if !s.opts.Host {
		for _, g := range s.gateways() {
			if err := s.api.Listen(netip.AddrPortFrom(g, uint16(s.opts.APIPort)).String()); err != nil {
				nodes.Close()
				return "", fmt.Errorf("serve the API to the nodes: %w", err)
			}
		}
	}
	s.background("nodes", func(ctx context.Context) (err error) {
		if nodes == nil { // the last run has ended
			if nodes, err = node.New(o); err != nil {
				return err
			}
		}
		run := nodes
		nodes = nil
		once.Do(func() { close(first) })
		return run.Run(ctx)
	})
	<-first
	names, err := s.waitNodes(ctx, o.Nodes, planes)
	if err != nil {
		return "", err
	}
	return names, nil
}

// runNode runs what belongs on a node for as long as it has power.
func (s *system) runNode(ctx context.Context, h node.Handle, planes *countdown) {
	log := s.log.With("node", h.Name)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	part := func(name string, f func(context.Context) error) {
		wg.Go(func() { supervise(ctx, log.With("part", name), f) })
	}
	part("proxy", func(ctx context.Context) error { return s.runProxy(ctx, h, planes) })
	if len(h.Addrs) > 0 {
		part("dns", func(ctx context.Context) error {
			return s.dns.RunNode(ctx, dns.Node{Name: h.Name, Zone: h.Zone, NetNS: h.NetNS, Addrs: h.Addrs, Logger: s.log.With("part", "dns")})
		})
	}
	if !s.opts.Host {
		log := s.log.With("part", "announce")
		monitor := announce.NewMonitor()
		part("announce", func(ctx context.Context) error {
			return announce.Run(ctx, announce.Options{NodeName: h.Name, NetNS: h.NetNS, Shared: s.speakers, Monitor: monitor, Logger: log})
		})
		// As in a cluster, but for the node itself alone; there is one controller for all.
		for port, monitor := range map[string]daemon.Part{daemon.DefaultHTTP: monitor, daemon.DefaultControllerHTTP: s.lbMonitor} {
			wg.Go(func() {
				daemon.Serve(ctx, h.NetNS.Listen, []string{"127.0.0.1" + port}, daemon.Handler(false, monitor), log.With("node", h.Name))
			})
		}
	}
	<-ctx.Done()
}

// runProxy is a node's data plane.
func (s *system) runProxy(ctx context.Context, h node.Handle, planes *countdown) error {
	log := s.log.With("node", h.Name, "part", "proxy")
	programmer, err := nft.New(nft.Config{NetNS: h.NetNS, Table: s.table(), Logger: log})
	if err != nil {
		return err
	}
	defer programmer.Close()
	p, err := proxy.New(proxy.Config{
		NodeName:       h.Name,
		Source:         s.source,
		Programmer:     programmer,
		NetNS:          h.NetNS,
		DetectLocal:    proxy.DetectLocal{Mode: proxy.DetectClusterCIDR, ClusterCIDRs: s.net.Pods},
		HealthzAddress: ":10256",
		MetricsAddress: "127.0.0.1:10249",
		NodeIPs:        h.Addrs,
		Logger:         log,
	})
	if err != nil {
		return err
	}
	s.planes.add(p)
	defer s.planes.remove(p)
	go func() {
		select {
		case <-p.Synced():
			planes.done(h.Name)
		case <-ctx.Done():
		}
	}()
	return p.Run(ctx)
}

// unroutedLimit bounds how long the end of a Pod waits for data planes: one
// that cannot be programmed, or an endpoint that somebody lists by hand, must
// not keep a Pod alive.
const unroutedLimit = 2 * time.Second

// unrouted returns when no data plane sends new connections to a Pod any more,
// given that the API lists it nowhere as ready.
func (s *system) unrouted(ctx context.Context, pod *corev1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, unroutedLimit)
	defer cancel()
	var addrs []netip.Addr
	for _, ip := range pod.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			addrs = append(addrs, a)
		}
	}
	// The data planes' watch is not the one that the caller looked at.
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for s.source.ListsReady(pod.Namespace, addrs...) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.log.Warn("a Pod ends although an EndpointSlice lists it as ready", "pod", pod.Namespace+"/"+pod.Name)
			return nil
		}
	}
	return s.planes.barrier(ctx)
}

// dataPlanes are the proxies of all nodes with power.
type dataPlanes struct {
	mu  sync.Mutex
	all map[*proxy.Proxy]struct{}
}

func (d *dataPlanes) add(p *proxy.Proxy) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all == nil {
		d.all = map[*proxy.Proxy]struct{}{}
	}
	d.all[p] = struct{}{}
}

func (d *dataPlanes) remove(p *proxy.Proxy) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.all, p)
}

// barrier returns when every kernel holds what its proxy has been told so far.
// Proxies that stop or cannot program do not hold it up beyond ctx.
func (d *dataPlanes) barrier(ctx context.Context) error {
	d.mu.Lock()
	var wg sync.WaitGroup
	for p := range d.all {
		// Its error is that it stopped, or that time is up; either way the Pod ends.
		wg.Go(func() { _ = p.Barrier(ctx) })
	}
	d.mu.Unlock()
	wg.Wait()
	return nil
}

// table is the name of the data plane's nftables table. On the machine itself
// it tells instances apart.
func (s *system) table() string {
	if s.opts.Host {
		return Prefix(s.opts.DataDir)
	}
	return nft.DefaultTable
}

// waitNodes returns when all nodes are ready and have their data plane.
func (s *system) waitNodes(ctx context.Context, want int, planes *countdown) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	last := errors.New("none has registered")
	for {
		names, off, err := s.readyNodes(ctx, want)
		if err == nil && planes.remaining() <= off {
			return names, nil
		}
		if err == nil {
			err = errors.New("a data plane is not programmed yet")
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("the nodes are not ready: %w (the log says more: %s)", last, LogFile)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// readyNodes names the nodes if all are ready but those that are to be off,
// which it counts.
func (s *system) readyNodes(ctx context.Context, want int) (names string, off int, err error) {
	list, err := s.admin.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", 0, err
	}
	ready := 0
	var shown []string
	for _, n := range list.Items {
		if n.Annotations[node.AnnotationPower] != "" {
			off++ // switched off before the restart, and so it stays
			continue
		}
		st := nodeStatus(&n, 0)
		if st.Ready {
			ready++
			shown = append(shown, n.Name+" "+strings.Join(st.Addresses[:min(1, len(st.Addresses))], ""))
		}
	}
	if ready+off < want {
		return "", off, fmt.Errorf("%d of %d are ready", ready, want-off)
	}
	if len(shown) > 3 {
		shown = append(shown[:2], fmt.Sprintf("… %d in all", len(shown)))
	}
	return strings.Join(shown, ", "), off, nil
}

// countdown counts which of n different things are not done yet.
type countdown struct {
	mu   sync.Mutex
	n    int
	seen map[string]bool
}

func newCountdown(n int) *countdown { return &countdown{n: n, seen: map[string]bool{}} }

func (c *countdown) done(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[name] = true
}

func (c *countdown) remaining() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n - len(c.seen)
}

// cleanup removes what an instance made on the machine: Pods, namespaces,
// links, rules.
func cleanup(ctx context.Context, o Options, n Network) error {
	err := node.Cleanup(ctx, nodeOptions(o, n))
	if o.Host {
		err = errors.Join(err, nft.Cleanup(ctx, nil, Prefix(o.DataDir)))
	}
	return err
}
