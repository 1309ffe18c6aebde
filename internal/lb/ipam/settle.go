package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// settle gives a Service what it asks for as far as that can be had, takes
// from it what it may not keep, and queues it if it lacks something.
func (a *Allocator) settle(s *service) {
	for _, addr := range slices.Clone(s.held) {
		x := a.addresses[addr]
		if !slices.Contains(s.req.Families, FamilyOf(addr)) || x.common && x.kept || a.conflict(s, addr) != nil {
			a.release(s, addr)
		}
	}
	target, waits, pending := a.choose(s)
	if pending != nil && !pending.Partial {
		// What it has stays until all that replaces it is there.
		target = slices.Clone(s.held)
	}
	for _, addr := range slices.Clone(s.held) {
		if !slices.Contains(target, addr) {
			a.release(s, addr)
		}
	}
	for _, addr := range target {
		if !slices.Contains(s.held, addr) {
			a.acquire(s, addr, "")
		}
	}
	if !slices.Equal(s.held, target) {
		s.held = target
		a.changed[s.req.Key] = struct{}{}
	}
	if (pending == nil) != (s.pending == nil) || pending != nil && *pending != *s.pending {
		a.changed[s.req.Key] = struct{}{}
	}
	seq := s.seq
	a.dequeue(s)
	s.pending = pending
	if pending != nil {
		if seq == 0 {
			a.seq++
			seq = a.seq
		}
		a.enqueue(s, seq, waits)
	}
}

// choose works out the addresses a Service should have; nobody's change. If
// some cannot be had, it says what to wait for besides a change of pools.
func (a *Allocator) choose(s *service) (target []netip.Addr, waits []waitKey, pending *Pending) {
	fail := func(p *Pending, w ...waitKey) {
		waits = append(waits, w...)
		if pending == nil {
			pending = p
		}
	}
	if s.req.ShareKey != "" {
		defer func() {
			if pending != nil {
				waits = append(waits, waitKey{share: s.req.ShareKey})
			}
		}()
	}
	named := map[Family]bool{}
	for _, addr := range s.req.Addresses {
		named[FamilyOf(addr)] = true
		if slices.Contains(target, addr) {
			continue
		}
		if !slices.Contains(s.held, addr) {
			if p := a.obtainable(s, addr); p != nil {
				fail(p, waitKey{addr: addr})
				continue
			}
		}
		target = append(target, addr)
	}
	hard := pending != nil
	got := len(target)
	for _, f := range s.req.Families {
		if named[f] {
			continue
		}
		addr, p, w := a.pick(s, f)
		if p != nil {
			fail(p, w...)
			// Better the wrong one that works than none.
			if i := slices.IndexFunc(s.held, func(h netip.Addr) bool { return FamilyOf(h) == f }); i >= 0 {
				target = append(target, s.held[i])
			}
			continue
		}
		got++
		target = append(target, addr)
	}
	if pending != nil {
		p := *pending
		p.Partial = !hard && !s.req.RequireAll && got > 0
		pending = &p
	}
	// In the order of the families, as the Service has them.
	slices.SortStableFunc(target, func(x, y netip.Addr) int {
		return slices.Index(s.req.Families, FamilyOf(x)) - slices.Index(s.req.Families, FamilyOf(y))
	})
	return target, waits, pending
}

// obtainable says why a Service cannot have an address that it asks for.
func (a *Allocator) obtainable(s *service, addr netip.Addr) *Pending {
	if !slices.Contains(s.req.Families, FamilyOf(addr)) {
		return &Pending{Reason: ReasonWrongFamily, Message: fmt.Sprintf("address %s is %s, and the Service has ipFamilies %v", addr, FamilyOf(addr), s.req.Families)}
	}
	p := a.poolOf(addr)
	switch {
	case p == nil:
		return &Pending{Reason: ReasonNotInPool, Message: fmt.Sprintf("address %s is in no IPPool: ask for another, or add it to a pool", addr)}
	case len(s.req.Pools) > 0 && !slices.Contains(s.req.Pools, p.Name):
		return &Pending{Reason: ReasonNotInPool, Message: fmt.Sprintf("address %s is in pool %q, and the Service asks for pool %s", addr, p.Name, quoted(s.req.Pools))}
	case p.Closed:
		return &Pending{Reason: ReasonNotInPool, Message: fmt.Sprintf("address %s is in pool %q, which is being deleted", addr, p.Name)}
	case !p.selects(&s.req):
		return &Pending{Reason: ReasonNotAllowed, Message: fmt.Sprintf("address %s is in pool %q, whose selectors do not match this Service", addr, p.Name)}
	}
	if c := a.conflict(s, addr); c != nil {
		return c
	}
	return a.taken(s, p, addr)
}

// taken says which port of a common address something that is no Service has.
func (a *Allocator) taken(s *service, p *pool, addr netip.Addr) *Pending {
	if !p.Common || a.busy == nil {
		return nil
	}
	for _, port := range s.req.Ports {
		if a.busy(addr, port) {
			return &Pending{Reason: ReasonPortClash, Message: fmt.Sprintf("port %s of %s is in use on the node itself", port, addr)}
		}
	}
	return nil
}

// conflict says why a Service cannot hold an address beside those that do.
func (a *Allocator) conflict(s *service, addr netip.Addr) *Pending {
	x := a.addresses[addr]
	if x == nil {
		return nil
	}
	if _, holds := x.owners[s]; !holds {
		for o := range x.leaving {
			if o != s {
				return &Pending{Reason: ReasonInUse, Message: fmt.Sprintf("address %s is just being given up by Service %s", addr, o.req.Key)}
			}
		}
	}
	var other *service
	for o := range x.owners {
		if o != s {
			other = o
			break
		}
	}
	if other == nil {
		return nil
	}
	if !x.common && (s.req.ShareKey == "" || s.req.ShareKey != other.req.ShareKey) {
		return &Pending{Reason: ReasonInUse, Message: fmt.Sprintf("address %s is in use by Service %s (to share it, give both the same annotation fairway.dev/share-key)", addr, other.req.Key)}
	}
	for _, p := range s.req.Ports {
		if o := x.ports[p]; o != nil && o != s {
			return &Pending{Reason: ReasonPortClash, Message: fmt.Sprintf("port %s of address %s is in use by Service %s", p, addr, o.req.Key)}
		}
	}
	if !x.common && s.req.Backends != other.req.Backends {
		return &Pending{Reason: ReasonPolicyDiffer, Message: fmt.Sprintf("address %s is in use by Service %s: to share it, both need the same externalTrafficPolicy and, with Local, the same selector", addr, other.req.Key)}
	}
	return nil
}

// pick finds an address of a family for a Service that names none: the one it
// has, one it can share, or a free one.
func (a *Allocator) pick(s *service, f Family) (netip.Addr, *Pending, []waitKey) {
	for _, h := range s.held {
		if FamilyOf(h) == f && a.asked(s, h) {
			return h, nil, nil
		}
	}
	pools, pending := a.candidates(s, f)
	if pending != nil {
		return netip.Addr{}, pending, nil
	}
	if key := s.req.ShareKey; key != "" {
		var best netip.Addr
		for addr := range a.shared[key] {
			x := a.addresses[addr]
			if FamilyOf(addr) == f && !x.kept && (!best.IsValid() || addr.Less(best)) &&
				slices.ContainsFunc(pools, func(p *pool) bool { return p.Name == x.pool }) && a.conflict(s, addr) == nil {
				best = addr
			}
		}
		if best.IsValid() {
			return best, nil, nil
		}
	}
	var waits []waitKey
	var names []string
	var total int64
	for _, p := range pools {
		if p.Common {
			var addr netip.Addr
			if addr, pending = a.pickCommon(s, p, f); pending == nil {
				return addr, nil, nil
			}
		} else if addr, ok := p.free(f).min(); ok {
			return addr, nil, nil
		}
		waits = append(waits, waitKey{pool: p.Name, family: f})
		names = append(names, p.Name)
		total = addSaturating(total, p.total(f))
	}
	if pending != nil && len(pools) == 1 {
		return netip.Addr{}, pending, waits
	}
	return netip.Addr{}, &Pending{Reason: ReasonExhausted, Message: fmt.Sprintf("all %d %s addresses of pool %s are in use: add addresses to it, or delete Services of type LoadBalancer", total, f, quoted(names))}, waits
}

// asked says whether an address that a Service holds is, or was given, out of
// a pool that it asks for.
func (a *Allocator) asked(s *service, held netip.Addr) bool {
	if len(s.req.Pools) == 0 || slices.Contains(s.req.Pools, s.origins[held]) {
		return true
	}
	x := a.addresses[held]
	if x.kept || !slices.Contains(s.req.Pools, x.pool) {
		return false
	}
	s.origins[held] = x.pool
	a.changed[s.req.Key] = struct{}{}
	return true
}

// pickCommon finds a node's address with the Service's ports free.
func (a *Allocator) pickCommon(s *service, p *pool, f Family) (netip.Addr, *Pending) {
	var why *Pending
	for _, r := range p.ranges {
		if FamilyOf(r.From) != f {
			continue
		}
		for addr := r.From; r.Contains(addr); addr = addr.Next() {
			c := a.conflict(s, addr)
			if c == nil {
				c = a.taken(s, p, addr)
			}
			if c == nil {
				return addr, nil
			}
			why = c
		}
	}
	return netip.Addr{}, why
}

// candidates are the pools that may serve a family of a Service, best first;
// or why there are none.
func (a *Allocator) candidates(s *service, f Family) ([]*pool, *Pending) {
	var out []*pool
	var reason, message string
	if len(s.req.Pools) > 0 {
		for _, name := range s.req.Pools {
			p := a.pools[name]
			switch {
			case p == nil:
				reason, message = ReasonNoSuchPool, fmt.Sprintf("the Service asks for pool %q, which does not exist", name)
			case p.Closed:
				reason, message = ReasonNoSuchPool, fmt.Sprintf("the Service asks for pool %q, which gives nothing out: it is being deleted, or not valid (see its status)", name)
			case !p.selects(&s.req):
				reason, message = ReasonNotAllowed, fmt.Sprintf("the Service asks for pool %q, whose selectors do not match it", name)
			case p.total(f) == 0:
				reason, message = ReasonNoPool, fmt.Sprintf("the Service asks for pool %q, which has no %s addresses", name, f)
			default:
				out = append(out, p)
			}
		}
	} else {
		for _, p := range a.order {
			if p.AutoAssign && !p.Closed && p.total(f) > 0 && p.selects(&s.req) {
				out = append(out, p)
			}
		}
		reason = ReasonNoPool
		message = fmt.Sprintf("no IPPool gives %s addresses to this Service: there are %d pools, and none with such addresses, autoAssign and selectors that match", f, len(a.order))
		if len(a.order) == 0 {
			message = "there is no IPPool: create one with addresses of your network"
		}
	}
	if len(out) == 0 {
		return nil, &Pending{Reason: reason, Message: message}
	}
	return out, nil
}

func (p *pool) free(f Family) *freeSet {
	if f == V4 {
		return p.free4
	}
	return p.free6
}

func (p *pool) total(f Family) int64 {
	if f == V4 {
		return p.total4
	}
	return p.total6
}

func quoted(names []string) string {
	q := make([]string, len(names))
	for i, n := range names {
		q[i] = fmt.Sprintf("%q", n)
	}
	return strings.Join(q, ", ")
}
