package ipam

import "net/netip"

// Has says whether an address is in a pool.
func (a *Allocator) Has(addr netip.Addr) bool { return a.poolOf(addr) != nil }

// Waiting is how many Services lack an address.
func (a *Allocator) Waiting() int { return a.pending.Len() }

// Reasons counts the Services that lack an address, by why. It takes time in
// proportion to them.
func (a *Allocator) Reasons() map[string]int {
	out := map[string]int{}
	a.pending.Ascend(func(s *service) bool {
		if s.pending != nil {
			out[s.pending.Reason]++
		}
		return true
	})
	return out
}

// Usages is the Usage of every pool.
func (a *Allocator) Usages() map[string]Usage {
	out := make(map[string]Usage, len(a.pools))
	for name := range a.pools {
		out[name] = a.Usage(name)
	}
	return out
}

// Usage counts the addresses of a pool.
func (a *Allocator) Usage(name string) Usage {
	p := a.pools[name]
	if p == nil {
		return Usage{}
	}
	return Usage{
		Total4: p.total4, Used4: p.used4, Total6: p.total6, Used6: p.used6,
		Services: int64(len(p.holders)), Kept: p.kept,
	}
}

// account counts an address in (+1) or out (-1) and keeps the free set in step.
func (p *pool) account(x *address, n int64) {
	if x.kept {
		p.kept += n
		return
	}
	free := p.free6
	if x.addr.Is4() {
		free = p.free4
		p.used4 += n
	} else {
		p.used6 += n
	}
	if n > 0 {
		free.take(x.addr)
	} else {
		free.put(x.addr)
	}
}
