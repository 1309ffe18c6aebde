package nft

import (
	"time"

	"golang.org/x/sys/unix"
)

// chainSpec is a chain and what is in it. kind is "" for a chain that others
// go to; otherwise it is the type of a base chain ("nat", "filter").
type chainSpec struct {
	name     string
	kind     string
	hook     uint32
	priority int32
	rules    []rule
}

const netHeader, transportHeader = unix.NFT_PAYLOAD_NETWORK_HEADER, unix.NFT_PAYLOAD_TRANSPORT_HEADER

// loadSource loads the packet's source address.
func (r rule) loadSource(f *family) rule {
	return r.payload(netHeader, f.saddr, f.addrLen(), f.reg.s)
}

// loadKey loads daddr . proto . dport: the packet's, or with any the one of a
// node port, which has no address.
func (r rule) loadKey(f *family, any bool) rule { return r.loadKeyAt(f, any, 0) }

// loadKeyAt is loadKey a number of registers further on.
func (r rule) loadKeyAt(f *family, any bool, shift uint32) rule {
	if any {
		r = r.immediate(f.reg.d+shift, f.anyAddr().AsSlice())
	} else {
		r = r.payload(netHeader, f.daddr, f.addrLen(), f.reg.d+shift)
	}
	return r.meta(unix.NFT_META_L4PROTO, f.reg.p+shift).payload(transportHeader, 2, 2, f.reg.t+shift)
}

// findClass looks daddr . proto . dport up and leaves the class's two words in
// the registers behind x.
//
// The two are loaded with something before: nft(8) up to 1.1 follows registers
// from load to use and aborts where one map's result is the key of the next.
// With this, it shows the mark in its place, and that is what the comment says.
func (r rule) findClass(p *Programmer, f *family, g *generation) rule {
	return r.meta(unix.NFT_META_MARK, f.reg.x+1).meta(unix.NFT_META_MARK, f.reg.x+2).
		find(f.reg.d, g.sets[services].name, f.reg.x)
}

// classChains are the chains of a class: they give a new connection its
// backend.
func (p *Programmer) classChains(f *family, g *generation, c class) []chainSpec {
	nodePort := c.has(flagNodePort)
	main := chainSpec{name: c.chain(p, f)}
	if c.has(flagLimited) {
		// The sources set wants the source behind the key: daddr proto dport saddr.
		r := rule{}.loadKey(f, nodePort).
			payload(netHeader, f.saddr, f.addrLen(), f.reg.x).
			absent(f.reg.d, g.sets[sources].name).drop()
		main.rules = append(main.rules, r)
	}
	if !c.has(flagInside) {
		main.rules = append(main.rules, p.pick(f, g, c, c.backends(), 0)...)
		return []chainSpec{main}
	}
	inner := chainSpec{name: c.inner(p, f), rules: p.pick(f, g, c, c.insideBackends(), insideSlot)}
	for _, r := range p.fromPods(f) {
		main.rules = append(main.rules, r.gotoChain(inner.name))
	}
	main.rules = append(main.rules, rule{}.fromNode(f).gotoChain(inner.name))
	main.rules = append(main.rules, p.pick(f, g, c, c.backends(), 0)...)
	return []chainSpec{inner, main}
}

// fromPods are the beginnings of rules that match a packet of the Pod network.
func (p *Programmer) fromPods(f *family) (rules []rule) {
	if hasFamily(p.node.PodNetwork.CIDRs, f) {
		rules = append(rules, rule{}.loadSource(f).lookup(f.reg.s, p.name(setPods, f)))
	}
	if len(p.node.PodNetwork.Interfaces) > 0 {
		rules = append(rules, rule{}.loadSource(f).lookup(f.reg.s, p.name(setPodSeen, f)))
	}
	return rules
}

// fromNode matches a packet of this node itself.
func (r rule) fromNode(f *family) rule {
	return r.addrType(unix.NFTA_FIB_F_SADDR, f.reg.s).equal(f.reg.s, host32(rtnLocal)...)
}

// pick gives the connection one of n backends, in the slots from first on. With
// none, a class that refuses lets the packet pass to the refusing chain, and
// one that does not drops it.
func (p *Programmer) pick(f *family, g *generation, c class, n int, first uint32) []rule {
	if n == 0 {
		if c.has(flagReject) {
			return []rule{rule{}.accept()}
		}
		return []rule{rule{}.drop()}
	}
	nodePort := c.has(flagNodePort)
	// A packet may have read the number of backends before a change and look for
	// its slot after it. If that is gone, the first slot is there as long as
	// there is any backend; with one backend this is a second look.
	slot := func(r rule) rule { return r.random(f.reg.x, uint32(n), first) }
	firstSlot := func(r rule) rule { return r.immediate(f.reg.x, host32(first)) }
	if n == 1 {
		slot = firstSlot
	}
	if c.affinity() == 0 {
		key := rule{}.loadKey(f, nodePort)
		pick := func(r rule) rule {
			return r.find(f.reg.d, g.sets[backends].name, f.reg.x).dnat(f.nfproto, f.reg.x, f.reg.port)
		}
		return []rule{pick(slot(key)), pick(firstSlot(key))}
	}

	// What a map with the address behind a first word leaves lies one further.
	addr, port := f.reg.x+1, f.reg.port+1
	key := rule{}.loadSource(f).loadKey(f, nodePort).
		// For nft(8), as in findClass: it shows these in place of the backend.
		payload(netHeader, f.saddr, f.addrLen(), addr).payload(transportHeader, 0, 2, port)
	find := func(r rule) rule { return r.find(f.reg.d, g.sets[sticky].name, f.reg.x) }
	chosen := find(slot(key))
	ms := uint64(c.affinity() / time.Millisecond)
	affinity := p.name(setAffinity, f)
	const note = "saddr and sport after dport stand for the backend"
	return []rule{
		// Who has been here goes where it went, if that is still a backend.
		key.find(f.reg.s, affinity, f.reg.x).
			loadKeyAt(f, nodePort, 1).lookup(f.reg.d+1, g.sets[members].name).
			loadKey(f, nodePort).dynset(dynUpdate, f.reg.s, f.reg.x, affinity, ms).
			dnat(f.nfproto, addr, port).comment(note),
		// Anybody else gets one, which is remembered in place of a stale one.
		chosen.payload(transportHeader, 2, 2, f.reg.x).
			dynset(dynDelete, f.reg.s, f.reg.x, affinity, 0).
			dynset(dynUpdate, f.reg.s, f.reg.x, affinity, ms).
			dnat(f.nfproto, addr, port).comment(note),
		// The set is full: better a backend without memory than none.
		chosen.dnat(f.nfproto, addr, port).comment(note),
		find(firstSlot(key)).dnat(f.nfproto, addr, port).comment(note),
	}
}
