package standalone

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"k8s.io/client-go/kubernetes"

	"fairway.dev/fairway/api/v1alpha1"
	"fairway.dev/fairway/internal/announce"
	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/dns"
	"fairway.dev/fairway/internal/lb"
	"fairway.dev/fairway/internal/lb/ipam"
	"fairway.dev/fairway/internal/proxy/source"
)

// startSource begins to watch what every node's data plane is made of: one
// watch for all of them.
func (s *system) startSource() error {
	config, err := s.api.ClientConfig(apiserver.Proxy())
	if err != nil {
		return err
	}
	s.source, err = source.New(source.Config{REST: config, Logger: s.log.With("part", "proxy")})
	if err != nil {
		return err
	}
	s.background("proxy source", s.source.Run)
	return nil
}

// startDNS makes the Service kube-dns and begins to watch the names. The
// servers are the nodes': see runNode.
func (s *system) startDNS(ctx context.Context) (string, error) {
	ips := dns.ServiceIPs(s.net.Services)
	if err := dns.EnsureService(ctx, s.admin, ips); err != nil {
		return "", err
	}
	config, err := s.api.ClientConfig(apiserver.DNS())
	if err != nil {
		return "", err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return "", err
	}
	// The servers' own endpoints are written like all others, by the identity
	// that may.
	config, err = s.api.ClientConfig(apiserver.Endpoints())
	if err != nil {
		return "", err
	}
	publisher, err := kubernetes.NewForConfig(config)
	if err != nil {
		return "", err
	}
	o := dns.Options{
		Client:       client,
		Publisher:    publisher,
		Domain:       s.opts.ClusterDomain,
		ReverseZones: append(append([]netip.Prefix(nil), s.net.Services...), s.net.Pods...),
		ServiceIPs:   ips,
		// Questions for others leave from the machine, not from a node.
		Dial:   new(net.Dialer).DialContext,
		Logger: s.log.With("part", "dns"),
	}
	for _, text := range s.opts.DNSUpstreams {
		u, err := dns.ParseUpstream(text)
		if err != nil {
			return "", fmt.Errorf("--dns-upstream: %w", err)
		}
		o.Upstreams = append(o.Upstreams, u)
	}
	if s.dns, err = dns.New(o); err != nil {
		return "", err
	}
	s.background("dns", s.dns.Run)
	return fmt.Sprintf("%s, names under %s", ips[0], s.opts.ClusterDomain), nil
}

// startSpeakers begins to watch what the nodes' announcers need to know.
func (s *system) startSpeakers() error {
	config, err := s.api.ClientConfig(apiserver.LB())
	if err != nil {
		return err
	}
	if s.speakers, err = announce.NewShared(config, s.log.With("part", "announce")); err != nil {
		return err
	}
	s.lbMonitor = lb.NewMonitor()
	s.background("announce", func(ctx context.Context) error {
		select {
		case <-s.pools: // a watch of a kind that is not there fails, and comes back late
			return s.speakers.Run(ctx)
		case <-ctx.Done():
			return nil
		}
	})
	return nil
}

// installPools makes the API know of address pools, and makes the default one.
func (s *system) installPools(ctx context.Context) (string, error) {
	admin, err := s.api.ClientConfig(apiserver.Admin())
	if err != nil {
		return "", err
	}
	if err := v1alpha1.Install(ctx, admin); err != nil {
		return "", err
	}
	close(s.pools)
	pools, err := v1alpha1.NewClient(admin)
	if err != nil {
		return "", err
	}
	detail := "the node's own address"
	if s.opts.Host && len(s.opts.LBAddresses) == 0 {
		err = lb.EnsureNodeAddressPool(ctx, pools)
	} else {
		addresses := s.opts.LBAddresses
		if len(addresses) == 0 {
			addresses = defaultLBRanges(s.net.Nodes)
		}
		detail = addresses[0]
		err = lb.EnsureDefaultPool(ctx, pools, addresses)
	}
	return detail, err
}

// startLB starts to give LoadBalancer Services their addresses.
func (s *system) startLB() error {
	config, err := s.api.ClientConfig(apiserver.LB())
	if err != nil {
		return err
	}
	s.background("load balancer", func(ctx context.Context) error {
		return lb.RunController(ctx, lb.Options{
			Config:    config,
			Classless: true,
			// There is no other: after a crash it need not wait for its own Lease to run out.
			Identity: "standalone",
			PortBusy: portBusy,
			Monitor:  s.lbMonitor,
			Logger:   s.log.With("part", "lb"),
		})
	})
	return nil
}

// defaultLBRanges is a part of each node range that no node gets: the
// addresses 200 to 250, or the last quarter of a smaller range.
func defaultLBRanges(nodes []netip.Prefix) []string {
	var out []string
	for _, p := range nodes {
		size := 256
		if host := p.Addr().BitLen() - p.Bits(); host < 8 {
			size = 1 << host
		}
		first, last := 200, 250
		if size < 256 {
			first, last = size*3/4, size-2
		}
		out = append(out, nth(p, first).String()+"-"+nth(p, last).String())
	}
	return out
}

// nth is an address of a range by its number.
func nth(p netip.Prefix, n int) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := len(b) - 1; i >= 0 && n > 0; i-- {
		n += int(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// portBusy says whether a program of the machine already listens on a port of
// its address, which a Service then cannot have.
func portBusy(addr netip.Addr, port ipam.Port) bool {
	at := net.JoinHostPort(addr.String(), strconv.Itoa(int(port.Number)))
	if port.Protocol == "UDP" {
		c, err := net.ListenPacket("udp", at)
		if err == nil {
			c.Close()
		}
		return err != nil
	}
	l, err := net.Listen("tcp", at)
	if err == nil {
		l.Close()
	}
	return err != nil
}
