package announce

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"fairway.dev/fairway/api/v1alpha1"
	"fairway.dev/fairway/internal/lb/ipam"
)

// Entry is what is to be done about one address, whichever node asks.
type Entry struct {
	Addr netip.Addr
	// Services have the address: namespace/name, sorted.
	Services []string
	Mode     v1alpha1.AnnounceMode
	// Interfaces are name patterns of the links to announce on; empty: the
	// default.
	Interfaces []string
	// At, if not nil, has these patterns node by node instead.
	At map[string][]string
	// Nodes may announce it.
	Nodes map[string]struct{}
	// Local says that only nodes with an endpoint may.
	Local bool
}

func (e *Entry) equal(o *Entry) bool {
	return e != nil && o != nil && e.Mode == o.Mode && e.Local == o.Local && slices.Equal(e.Services, o.Services) &&
		slices.Equal(e.Interfaces, o.Interfaces) && maps.Equal(e.Nodes, o.Nodes) &&
		(e.At == nil) == (o.At == nil) && maps.EqualFunc(e.At, o.At, slices.Equal[[]string])
}

// patterns are those of the links that a node announces the address on.
func (e *Entry) patterns(node string) []string {
	if e.At != nil {
		return e.At[node]
	}
	return e.Interfaces
}

// serviceFacts is what matters of a Service.
type serviceFacts struct {
	uid    string
	addrs  []netip.Addr
	local  bool
	mode   v1alpha1.AnnounceMode // overrides the pool's if not empty
	origin []string              // the pools that addrs were given out of
}

// factsOf reads a Service; nil if it has nothing that Fairway announces.
func factsOf(svc *corev1.Service) *serviceFacts {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer || !slices.Contains(svc.Finalizers, v1alpha1.Finalizer) {
		return nil
	}
	f := &serviceFacts{uid: string(svc.UID), local: svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal}
	origins := strings.Split(svc.Annotations[v1alpha1.AnnotationAllocatedFrom], ",")
	for i, in := range svc.Status.LoadBalancer.Ingress {
		a, err := netip.ParseAddr(in.IP)
		if err != nil || in.IPMode != nil && *in.IPMode != corev1.LoadBalancerIPModeVIP {
			continue
		}
		f.addrs = append(f.addrs, a.Unmap())
		f.origin = append(f.origin, origins[min(i, len(origins)-1)])
	}
	switch v := v1alpha1.AnnounceMode(svc.Annotations[v1alpha1.AnnotationAnnounce]); {
	case strings.EqualFold(string(v), string(v1alpha1.AnnounceNone)):
		f.mode = v1alpha1.AnnounceNone
	case strings.EqualFold(string(v), string(v1alpha1.AnnounceL2)):
		f.mode = v1alpha1.AnnounceL2
	}
	if len(f.addrs) == 0 {
		return nil
	}
	return f
}

func (f *serviceFacts) equal(o *serviceFacts) bool {
	return f == nil && o == nil || f != nil && o != nil && f.uid == o.uid && f.local == o.local && f.mode == o.mode &&
		slices.Equal(f.addrs, o.addrs) && slices.Equal(f.origin, o.origin)
}

// endpointNodes are the nodes that traffic of a Service with policy Local can
// go to: those with a ready endpoint; if there is none anywhere, those with one
// that still serves while it terminates.
func endpointNodes(slicesOf []*discoveryv1.EndpointSlice) map[string]struct{} {
	ready, terminating := map[string]struct{}{}, map[string]struct{}{}
	for _, s := range slicesOf {
		for _, e := range s.Endpoints {
			if e.NodeName == nil {
				continue
			}
			c := e.Conditions
			if c.Ready == nil || *c.Ready {
				ready[*e.NodeName] = struct{}{}
			} else if c.Serving != nil && *c.Serving && c.Terminating != nil && *c.Terminating {
				terminating[*e.NodeName] = struct{}{}
			}
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return terminating
}

// poolFacts is what matters of a pool.
type poolFacts struct {
	name       string
	ranges     []ipam.Range
	mode       v1alpha1.AnnounceMode
	interfaces []string
	nodes      labels.Selector
	from       []place
}

// place is nodes and links; see v1alpha1.AnnounceFrom.
type place struct {
	nodes      labels.Selector
	interfaces []string
}

func selectorOf(s *metav1.LabelSelector) labels.Selector {
	if s == nil {
		return labels.Everything()
	}
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return sel
}

func poolFactsOf(p *v1alpha1.IPPool) poolFacts {
	f := poolFacts{name: p.Name, mode: cmp.Or(p.Spec.Announce.Mode, v1alpha1.AnnounceL2), interfaces: p.Spec.Announce.Interfaces, nodes: selectorOf(p.Spec.Announce.NodeSelector)}
	for _, s := range p.Spec.Addresses {
		if r, err := ipam.ParseRange(s); err == nil {
			f.ranges = append(f.ranges, r)
		}
	}
	for _, x := range p.Spec.Announce.From {
		from := place{nodes: selectorOf(x.NodeSelector), interfaces: x.Interfaces}
		if len(from.interfaces) == 0 {
			from.interfaces = f.interfaces
		}
		f.from = append(f.from, from)
	}
	return f
}

// nodeFacts is what matters of a Node.
type nodeFacts struct {
	uid    string
	labels labels.Set
	addrs  []netip.Addr // internal
	// unfit nodes announce nothing: excluded by label, on their way out, or
	// without network.
	unfit bool
}

func nodeFactsOf(n *corev1.Node) nodeFacts {
	f := nodeFacts{uid: string(n.UID), labels: n.Labels, unfit: n.DeletionTimestamp != nil}
	if _, excluded := n.Labels[corev1.LabelNodeExcludeBalancers]; excluded {
		f.unfit = true
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable && c.Status == corev1.ConditionTrue {
			f.unfit = true
		}
	}
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			f.addrs = append(f.addrs, ip.Unmap())
		}
	}
	return f
}

func (f nodeFacts) equal(o nodeFacts) bool {
	return f.uid == o.uid && f.unfit == o.unfit && slices.Equal(f.addrs, o.addrs) && maps.Equal(f.labels, o.labels)
}

// plan keeps the entries in step with what is known. It is pure and not safe
// for concurrent use. Its methods return the addresses whose entry changed.
type plan struct {
	services  map[string]*serviceFacts
	holders   map[netip.Addr]map[string]struct{}
	endpoints map[string]map[string]struct{} // of Services with policy Local
	pools     []poolFacts
	nodes     map[string]nodeFacts
	own       map[netip.Addr]struct{} // nodes' own addresses
	fit       map[string]fit          // by pool
	entries   map[netip.Addr]*Entry
}

func newPlan() *plan {
	return &plan{
		services:  map[string]*serviceFacts{},
		holders:   map[netip.Addr]map[string]struct{}{},
		endpoints: map[string]map[string]struct{}{},
		nodes:     map[string]nodeFacts{},
		own:       map[netip.Addr]struct{}{},
		fit:       map[string]fit{},
		entries:   map[netip.Addr]*Entry{},
	}
}

// setService says what a Service is now; nil if it is of no interest.
// endpoints is asked for the nodes with its endpoints if they matter.
func (p *plan) setService(key string, f *serviceFacts, endpoints func() map[string]struct{}) []netip.Addr {
	old := p.services[key]
	if old.equal(f) {
		return nil
	}
	touched := map[netip.Addr]struct{}{}
	if old != nil {
		for _, a := range old.addrs {
			touched[a] = struct{}{}
			delete(p.holders[a], key)
		}
		delete(p.services, key)
		delete(p.endpoints, key)
	}
	if f != nil {
		p.services[key] = f
		for _, a := range f.addrs {
			touched[a] = struct{}{}
			if p.holders[a] == nil {
				p.holders[a] = map[string]struct{}{}
			}
			p.holders[a][key] = struct{}{}
		}
		if f.local {
			p.endpoints[key] = endpoints()
		}
	}
	return p.refresh(maps.Keys(touched))
}

// setEndpoints says that a Service's endpoints may have changed.
func (p *plan) setEndpoints(key string, endpoints func() map[string]struct{}) []netip.Addr {
	f := p.services[key]
	if f == nil || !f.local {
		return nil
	}
	now := endpoints()
	if maps.Equal(now, p.endpoints[key]) {
		return nil
	}
	p.endpoints[key] = now
	return p.refresh(slices.Values(f.addrs))
}

func (p *plan) setPools(pools []poolFacts) []netip.Addr {
	p.pools = pools
	return p.refreshAll()
}

// setNode says what a Node is now; nil if it is gone.
func (p *plan) setNode(name string, f *nodeFacts) (changed []netip.Addr, nodes bool) {
	old, had := p.nodes[name]
	switch {
	case f == nil && !had, f != nil && had && old.equal(*f):
		return nil, false
	case f == nil:
		delete(p.nodes, name)
	default:
		p.nodes[name] = *f
	}
	clear(p.own)
	for _, n := range p.nodes {
		for _, a := range n.addrs {
			p.own[a] = struct{}{}
		}
	}
	return p.refreshAll(), true
}

func (p *plan) refreshAll() []netip.Addr {
	clear(p.fit)
	return p.refresh(maps.Keys(maps.Clone(p.holders)))
}

func (p *plan) refresh(addrs func(func(netip.Addr) bool)) []netip.Addr {
	var changed []netip.Addr
	for a := range addrs {
		e := p.make(a)
		old := p.entries[a]
		if e == nil {
			delete(p.entries, a)
			delete(p.holders, a)
			if old != nil {
				changed = append(changed, a)
			}
			continue
		}
		if !e.equal(old) {
			p.entries[a] = e
			changed = append(changed, a)
		}
	}
	return changed
}

// make works out the entry of an address; nil if no Service has it.
func (p *plan) make(a netip.Addr) *Entry {
	if len(p.holders[a]) == 0 {
		return nil
	}
	e := &Entry{Addr: a, Services: slices.Sorted(maps.Keys(p.holders[a]))}
	first := p.services[e.Services[0]]
	pool := p.poolOf(a, first.origin[slices.Index(first.addrs, a)])
	fit := p.fitFor(pool)
	e.Mode, e.Interfaces, e.Nodes, e.At = pool.mode, pool.interfaces, fit.nodes, fit.at
	var local []map[string]struct{}
	for _, key := range e.Services {
		s := p.services[key]
		if s.mode != "" {
			e.Mode = s.mode
		}
		if s.local {
			local = append(local, p.endpoints[key])
		}
	}
	if _, own := p.own[a]; own {
		e.Mode = v1alpha1.AnnounceNone // the node answers for it itself
	}
	if len(local) > 0 {
		e.Local = true
		e.Nodes = map[string]struct{}{}
		for n := range fit.nodes {
			if !slices.ContainsFunc(local, func(nodes map[string]struct{}) bool { _, ok := nodes[n]; return !ok }) {
				e.Nodes[n] = struct{}{}
			}
		}
	}
	return e
}

// poolOf is the pool that has an address; else the one it was given out of;
// else what a pool is by default.
func (p *plan) poolOf(a netip.Addr, origin string) poolFacts {
	fallback := poolFacts{mode: v1alpha1.AnnounceL2, nodes: labels.Everything()}
	for _, pool := range p.pools {
		if slices.ContainsFunc(pool.ranges, func(r ipam.Range) bool { return r.Contains(a) }) {
			return pool
		}
		if pool.name == origin {
			fallback = pool
		}
	}
	return fallback
}

// fit are the nodes that may announce for a pool; entries share it.
type fit struct {
	nodes map[string]struct{}
	at    map[string][]string // their links' patterns; nil: the pool's
}

func (p *plan) fitFor(pool poolFacts) fit {
	if f, ok := p.fit[pool.name]; ok {
		return f
	}
	f := fit{nodes: map[string]struct{}{}}
	if len(pool.from) > 0 {
		f.at = map[string][]string{}
	}
	for name, n := range p.nodes {
		if n.unfit || !pool.nodes.Matches(n.labels) {
			continue
		}
		selected, usual := len(pool.from) == 0, false
		var patterns []string
		for _, x := range pool.from {
			if x.nodes.Matches(n.labels) {
				selected, usual = true, usual || len(x.interfaces) == 0
				patterns = append(patterns, x.interfaces...)
			}
		}
		if !selected {
			continue
		}
		f.nodes[name] = struct{}{}
		if f.at != nil && !usual { // the default links are all that an address needs
			f.at[name] = patterns
		}
	}
	p.fit[pool.name] = f
	return f
}
