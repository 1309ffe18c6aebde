package state

import (
	"net/netip"
	"slices"
)

// rank orders claims on the same Key: the lower wins. An external IP that
// somebody sets to another Service's ClusterIP does not take it over.
type rank uint8

const (
	rankClusterIP rank = iota
	rankLoadBalancer
	rankExternalIP
	rankNodePort
)

// claim is a frontend that a Service wants to have.
type claim struct {
	frontend *Frontend
	owner    Name
	rank     rank
	next     *claim // the next in line for the same Key
}

// before reports whether c wins against o.
func (c *claim) before(o *claim) bool {
	if c.rank != o.rank {
		return c.rank < o.rank
	}
	return c.owner.less(o.owner)
}

// settled is what the endpoints of one port of one family came to, in slots.
type settled struct {
	port           ServicePort
	v6             bool
	cluster, local []Backend
	serving        []Backend // UDP and SCTP only
	noLocal        [2]bool   // internal, external: policy Local hides the endpoints that there are
}

// resolver turns one Service and its slices into frontends. It is a function
// with buffers.
type resolver struct {
	picker picker
	slots  map[Backend]bool
	out    []claim
}

var anyAddr = [2]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}

func family(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

// resolve returns the frontends svc shall have and the slots of its ports.
// before holds the slots it has so far. The claims are valid until the next
// call; what they point at is new or taken over from before.
func (r *resolver) resolve(v *View, svc *Service, list []*Slice, before []settled) ([]claim, []settled) {
	r.out = r.out[:0]
	after := make([]settled, 0, len(svc.Ports)*len(svc.ClusterIPs))
	for _, v6 := range [2]bool{false, true} {
		clusterIP, ok := svc.clusterIP(v6)
		if !ok {
			continue
		}
		for i := range svc.Ports {
			port := &svc.Ports[i]
			s := r.endpoints(v, svc, port, v6, list, before)
			r.frontends(v, svc, clusterIP, &s)
			after = append(after, s.settled)
		}
	}
	return r.out, after
}

// picked is settled and whether there is any usable endpoint in the cluster.
type picked struct {
	settled
	any bool
}

func (r *resolver) endpoints(v *View, svc *Service, port *ServicePort, v6 bool, list []*Slice, before []settled) picked {
	external := svc.external(port, v6)
	wantCluster := !svc.InternalLocal || external
	wantLocal := svc.InternalLocal || svc.ExternalLocal && external
	r.picker.collect(list, v6, port)
	c := r.picker.pick(v, wantCluster, wantLocal, port.Proto != TCP)

	var old settled
	for i := range before {
		if b := &before[i]; b.v6 == v6 && b.port.Name == port.Name && b.port.Proto == port.Proto {
			old = *b
		}
	}
	s := picked{any: c.any, settled: settled{
		port: *port, v6: v6,
		cluster: settle(old.cluster, c.cluster, &r.slots),
		serving: settle(old.serving, c.serving, &r.slots),
	}}
	if s.local = settle(old.local, c.local, &r.slots); slices.Equal(s.local, s.cluster) {
		s.local = s.cluster // one copy is enough
	}
	if c.any && len(c.local) == 0 {
		s.noLocal = [2]bool{svc.InternalLocal, svc.ExternalLocal && external}
	}
	return s
}

// frontends appends the claims of one port of one family.
func (r *resolver) frontends(v *View, svc *Service, clusterIP netip.Addr, s *picked) {
	put := func(k rank, f Frontend) {
		r.out = append(r.out, claim{frontend: &f, owner: svc.Name, rank: k})
	}
	base := Frontend{Key: Key{Port: s.port.Port, Proto: s.port.Proto}, Affinity: svc.Affinity, Empty: Reject}

	internal := base
	internal.Key.Addr = clusterIP
	internal.ClusterIP = true
	internal.Masquerade = MasqueradeOffCluster
	if v.MasqueradeAll {
		internal.Masquerade = MasqueradeAlways
	}
	internal.Backends = s.cluster
	if svc.InternalLocal {
		internal.Backends = s.local
		if s.any {
			internal.Empty = Drop
		}
	}
	put(rankClusterIP, internal)

	external := base
	if svc.ExternalLocal {
		external.Backends = s.local
		external.Masquerade = MasqueradeNever
		external.Inside, external.InsideBackends = true, s.cluster
		if s.any {
			external.Empty = Drop
		}
	} else {
		external.Backends = s.cluster
		external.Masquerade = MasqueradeAlways
	}
	ranges, restricted := sourceRanges(v, svc, s.v6)
	for _, a := range svc.LoadBalancerIPs {
		if a.Is6() == s.v6 {
			f := external
			f.Key.Addr = a
			f.Restricted, f.Sources = restricted, ranges
			put(rankLoadBalancer, f)
		}
	}
	for _, a := range svc.ExternalIPs {
		if a.Is6() == s.v6 {
			f := external
			f.Key.Addr = a
			put(rankExternalIP, f)
		}
	}
	if s.port.NodePort != 0 {
		f := external
		f.Key.Addr, f.Key.Port = anyAddr[family(s.v6)], s.port.NodePort
		put(rankNodePort, f)
	}
}

// sourceRanges returns who may reach the load-balancer addresses of a family.
// As in kube-proxy, a family without a range of its own is open, and so is one
// with a range of length zero; and if a range has this node's address, the
// load-balancer addresses themselves may come in: where such an address is
// local to a node, it is the source of the node's own connections to it.
func sourceRanges(v *View, svc *Service, v6 bool) (ranges []netip.Prefix, restricted bool) {
	fromNode := false
	for _, p := range svc.SourceRanges {
		if p.Addr().Is6() != v6 {
			continue
		}
		if p.Bits() == 0 {
			return nil, false
		}
		ranges = append(ranges, p)
		fromNode = fromNode || slices.ContainsFunc(v.NodeIPs, p.Contains)
	}
	if len(ranges) == 0 {
		return nil, false
	}
	if fromNode {
		for _, a := range svc.LoadBalancerIPs {
			if a.Is6() == v6 {
				ranges = append(ranges, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	return ranges, true
}

// equal reports whether both are programmed alike.
func (f *Frontend) equal(o *Frontend) bool {
	return f.Key == o.Key && f.ClusterIP == o.ClusterIP &&
		f.Masquerade == o.Masquerade && f.Empty == o.Empty && f.Inside == o.Inside &&
		f.Affinity == o.Affinity && f.Restricted == o.Restricted &&
		sameSlots(f.Backends, o.Backends) && sameSlots(f.InsideBackends, o.InsideBackends) &&
		slices.Equal(f.Sources, o.Sources)
}

func sameSlots(a, b []Backend) bool {
	if len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) {
		return true
	}
	return slices.Equal(a, b)
}
