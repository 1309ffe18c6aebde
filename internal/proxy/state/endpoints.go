package state

import (
	"net/netip"
	"slices"
)

// chosen is what one Service port's endpoints come to on one node.
type chosen struct {
	cluster []Backend // for policy Cluster; topology applied
	local   []Backend // for policy Local
	any     bool      // somewhere in the cluster there is a usable endpoint
	serving []Backend // every endpoint that serves, wherever; only if asked for
}

// candidate is an endpoint with its port.
type candidate struct {
	addr netip.AddrPort
	ep   *Endpoint
}

// picker chooses endpoints. It keeps its buffers, so that resolving a Service
// allocates nothing but results. It is not safe for concurrent use, and what
// pick returns is valid until the next call.
type picker struct {
	all  []candidate
	seen map[netip.AddrPort]int
	bufs [3][]Backend
}

// collect gathers the endpoints of a port from a Service's slices, each address
// once. While a Pod moves between slices it may be in two; and where a Pod
// network has reused the address of a terminating Pod, the one that is not
// terminating is meant.
func (p *picker) collect(list []*Slice, v6 bool, port *ServicePort) {
	p.all = p.all[:0]
	n := 0
	for _, s := range list {
		n += len(s.Endpoints)
	}
	empty(&p.seen, n)
	for _, s := range list {
		if s.V6 != v6 {
			continue
		}
		for _, sp := range s.Ports {
			if sp.Name != port.Name || sp.Proto != port.Proto || sp.Port == 0 {
				continue
			}
			for i := range s.Endpoints {
				ep := &s.Endpoints[i]
				c := candidate{netip.AddrPortFrom(ep.Addr, sp.Port), ep}
				if at, dup := p.seen[c.addr]; !dup {
					p.seen[c.addr] = len(p.all)
					p.all = append(p.all, c)
				} else if ep.Conditions&Terminating == 0 {
					p.all[at] = c
				}
			}
		}
	}
}

// topology is how hints narrow the choice of policy Cluster.
type topology uint8

const (
	anywhere topology = iota
	sameZone
	sameNode
)

// topology decides by the hints of the ready endpoints: if every one of them
// is hinted for nodes and one for this node, only those for this node are used;
// else the same for zones; else hints are ignored.
func (p *picker) topology(v *View) topology {
	var ready, forNode, forZone bool
	allNodes, allZones := true, true
	for _, c := range p.all {
		if c.ep.Conditions&Ready == 0 {
			continue
		}
		ready = true
		h := c.ep.Hints
		if h == nil {
			return anywhere
		}
		allNodes = allNodes && len(h.Nodes) > 0
		allZones = allZones && len(h.Zones) > 0
		forNode = forNode || slices.Contains(h.Nodes, v.NodeName)
		forZone = forZone || slices.Contains(h.Zones, v.Zone)
	}
	switch {
	case ready && allNodes && forNode:
		return sameNode
	case ready && allZones && forZone:
		return sameZone
	}
	return anywhere
}

func (t topology) admits(h *Hints, v *View) bool {
	switch t {
	case sameNode:
		return h != nil && slices.Contains(h.Nodes, v.NodeName)
	case sameZone:
		return h != nil && slices.Contains(h.Zones, v.Zone)
	}
	return true
}

// pick chooses for policies Cluster and Local, each only if wanted: endpoints
// that are ready, or else those that serve though they terminate. It mirrors
// kube-proxy's rules (pkg/proxy/topology.go of Kubernetes 1.37).
func (p *picker) pick(v *View, wantCluster, wantLocal, wantServing bool) chosen {
	const fallback = Serving | Terminating
	var out chosen
	cluster, local, serving := p.bufs[0][:0], p.bufs[1][:0], p.bufs[2][:0]
	isLocal := func(ep *Endpoint) bool { return ep.Node != "" && ep.Node == v.NodeName }

	var anyReady, anyFallback, localReady bool
	for _, c := range p.all {
		switch cond := c.ep.Conditions; {
		case cond&Ready != 0:
			anyReady = true
			localReady = localReady || isLocal(c.ep)
		case cond&fallback == fallback:
			anyFallback = true
		}
	}
	out.any = anyReady || anyFallback

	top := anywhere
	if wantCluster {
		top = p.topology(v)
	}
	for _, c := range p.all {
		cond := c.ep.Conditions
		ready, ending := cond&Ready != 0, cond&fallback == fallback
		if wantCluster && (ready && top.admits(c.ep.Hints, v) || !anyReady && ending) {
			cluster = append(cluster, Backend{c.addr})
		}
		if wantLocal && isLocal(c.ep) && (ready || !localReady && ending) {
			local = append(local, Backend{c.addr})
		}
		if wantServing && cond&Serving != 0 {
			serving = append(serving, Backend{c.addr})
		}
	}
	p.bufs = [3][]Backend{cluster, local, serving}
	out.cluster, out.local, out.serving = cluster, local, serving
	return out
}

// localReady counts the addresses of a family among a Service's slices that are
// ready and on this node: what a health check node port tells. An address with
// several ports counts once.
func (p *picker) localReady(list []*Slice, v6 bool, nodeName string) int {
	seen := map[netip.Addr]struct{}{}
	for _, s := range list {
		if s.V6 != v6 || !slices.ContainsFunc(s.Ports, func(sp SlicePort) bool { return sp.Port != 0 }) {
			continue
		}
		for i := range s.Endpoints {
			if ep := &s.Endpoints[i]; ep.Conditions&Ready != 0 && ep.Node != "" && ep.Node == nodeName {
				seen[ep.Addr] = struct{}{}
			}
		}
	}
	return len(seen)
}

// settle puts want into slots: who was in have keeps its slot, newcomers take
// the free ones in order, and if slots are left over at the end the last
// backends move forward into the gaps. It returns have itself if nothing
// changed, else a new slice; want is not kept. buf is a buffer.
func settle(have, want []Backend, buf *map[Backend]bool) []Backend {
	if slices.Equal(have, want) {
		return have
	}
	if len(want) == 0 {
		return nil
	}
	seen := empty(buf, len(want))
	for _, b := range want {
		seen[b] = false
	}
	out := make([]Backend, len(have), max(len(have), len(want)))
	kept := 0
	for i, b := range have {
		if _, stays := seen[b]; stays {
			out[i] = b
			seen[b] = true
			kept++
		}
	}
	if kept == len(have) && kept == len(want) {
		return have
	}
	next := 0
	for _, b := range want {
		if seen[b] {
			continue
		}
		for next < len(out) && out[next] != (Backend{}) {
			next++
		}
		if next == len(out) {
			out = append(out, b)
		} else {
			out[next] = b
		}
	}
	// Close the gaps that are left with the last ones.
	for i := next; i < len(out); i++ {
		for len(out) > 0 && out[len(out)-1] == (Backend{}) {
			out = out[:len(out)-1]
		}
		if i < len(out) && out[i] == (Backend{}) {
			out[i] = out[len(out)-1]
			out = out[:len(out)-1]
		}
	}
	return slices.Clip(out)
}
