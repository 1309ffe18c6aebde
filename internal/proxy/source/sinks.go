package source

import (
	"net/netip"
	"slices"

	"fairway.dev/fairway/internal/proxy/state"
)

// The sinks keep the Source's copy of each kind and tell the subscribers what
// has really changed: news that make no difference to a proxy end here.

type serviceSink struct{ s *Source }

func (k serviceSink) set(m objectMeta, svc *state.Service) {
	if svc == nil { // exists, but is none of ours
		k.del(m.objectKey)
		return
	}
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if old := k.s.services[svc.Name]; old != nil && old.Equal(svc) {
		return
	}
	k.s.services[svc.Name] = svc
	k.s.tell(func(c *Changes) { c.Services = append(c.Services, ServiceChange{svc.Name, svc}) })
}

func (k serviceSink) del(key objectKey) {
	n := state.Name{Namespace: key.namespace, Name: key.name}
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if k.s.services[n] == nil {
		return
	}
	delete(k.s.services, n)
	k.s.tell(func(c *Changes) { c.Services = append(c.Services, ServiceChange{n, nil}) })
}

func (k serviceSink) keys() map[objectKey]struct{} {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	out := make(map[objectKey]struct{}, len(k.s.services))
	for n := range k.s.services {
		out[objectKey{n.Namespace, n.Name}] = struct{}{}
	}
	return out
}

func (k serviceSink) synced() { k.s.readInFull("services") }

type sliceSink struct{ s *Source }

func (k sliceSink) set(m objectMeta, sl *state.Slice) {
	if sl == nil {
		k.del(m.objectKey)
		return
	}
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	old := k.s.slices[m.objectKey]
	if old != nil && old.Equal(sl) {
		return
	}
	k.s.slices[m.objectKey] = sl
	k.s.tell(func(c *Changes) { c.Slices = append(c.Slices, SliceChange{old, sl}) })
}

func (k sliceSink) del(key objectKey) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	old := k.s.slices[key]
	if old == nil {
		return
	}
	delete(k.s.slices, key)
	k.s.tell(func(c *Changes) { c.Slices = append(c.Slices, SliceChange{old, nil}) })
}

func (k sliceSink) keys() map[objectKey]struct{} {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	return keysOf(k.s.slices)
}

func (k sliceSink) synced() { k.s.readInFull("endpointslices") }

func keysOf[V any](m map[objectKey]V) map[objectKey]struct{} {
	out := make(map[objectKey]struct{}, len(m))
	for key := range m {
		out[key] = struct{}{}
	}
	return out
}

type nodeSink struct{ s *Source }

func (k nodeSink) set(_ objectMeta, n *Node) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if old := k.s.nodes[n.Name]; old != nil && old.Equal(n) {
		return
	}
	k.s.nodes[n.Name] = n
	k.tell(n.Name, n)
}

func (k nodeSink) del(key objectKey) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if k.s.nodes[key.name] == nil {
		return
	}
	delete(k.s.nodes, key.name)
	k.tell(key.name, nil)
}

// tell gives a Node to its own subscribers only.
func (k nodeSink) tell(name string, n *Node) {
	for sub := range k.s.subs {
		if sub.started && sub.node == name {
			sub.pending.Node, sub.pending.NodeChanged = n, true
			sub.wake()
		}
	}
}

func (k nodeSink) keys() map[objectKey]struct{} {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	out := map[objectKey]struct{}{}
	for n := range k.s.nodes {
		out[objectKey{name: n}] = struct{}{}
	}
	return out
}

func (k nodeSink) synced() { k.s.readInFull("nodes") }

type cidrSink struct{ s *Source }

func (k cidrSink) set(m objectMeta, list []netip.Prefix) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if slices.Equal(k.s.cidrs[m.name], list) {
		return
	}
	k.s.cidrs[m.name] = list
	k.tell()
}

func (k cidrSink) del(key objectKey) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	delete(k.s.cidrs, key.name)
	k.tell()
}

func (k cidrSink) tell() {
	all := k.s.allCIDRs()
	k.s.tell(func(c *Changes) { c.ServiceCIDRs, c.CIDRsChanged = all, true })
}

func (k cidrSink) keys() map[objectKey]struct{} {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	out := map[objectKey]struct{}{}
	for n := range k.s.cidrs {
		out[objectKey{name: n}] = struct{}{}
	}
	return out
}

func (k cidrSink) synced() { k.s.readInFull("servicecidrs") }
