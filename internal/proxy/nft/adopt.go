package nft

import (
	"bytes"
	"net/netip"

	"fairway.dev/fairway/internal/proxy/state"
)

// The kernel walks a set from its beginning for every 32 kB of a dump, so that
// a dump of a large set costs the square of its size: 2 s for 250,000
// elements. Adopting a table therefore reads the services map only, and trusts
// what the digests in it say of the rest.

// deepElements is how many elements a family's table may have for all to be
// compared where the digests are not to be trusted; beyond, making a new
// generation is quicker.
const deepElements = 30_000

// stamped reads the stamp of the adopted generation. complete is whether it
// has one at all, which is the last thing a new generation gets. right is
// whether it is that of exactly what is held, with as many elements as that:
// nothing has changed since it was left.
func (p *Programmer) stamped(i int, need [kinds]int) (complete, right bool, err error) {
	g := p.gens[i]
	var stamps [][]byte
	err = p.elements(g.sets[stamp].name, func() { stamps = nil }, func(el element) error {
		stamps = append(stamps, bytes.Clone(el.key))
		return nil
	})
	if err != nil || len(stamps) != 1 {
		return false, false, err
	}
	right = bytes.Equal(stamps[0], stampKey(p.stamp[i]))
	for k := range stamp {
		if n := g.sets[k].count; k != sources && n >= 0 && n != need[k] {
			right = false
		}
	}
	return true, right, nil
}

// adopt reads the services map of an adopted generation and records in p.ch
// what has to change. It answers false if the table is not one that this
// layout's programmer left behind.
func (p *Programmer) adopt(i int) (bool, error) {
	type strange struct {
		key state.Key
		class
	}
	var (
		g       = p.gens[i]
		others  []strange // elements that are not right, or of no frontend of ours
		right   map[state.Key]bool
		cluster map[netip.Addr]int
		slots   [kinds]int
		ok      bool
	)
	start := func() {
		others, slots, ok = nil, [kinds]int{}, true
		right, cluster = map[state.Key]bool{}, map[netip.Addr]int{}
	}
	err := p.elements(g.sets[services].name, start, func(el element) error {
		key, rest, valid := families[i].parseKey(el.key)
		r, whole := parseRecord(el.data)
		if !valid || !whole || len(rest) != 0 || !el.plain(key) {
			ok = false
			return nil
		}
		slots[slotKind(r.class)] += r.backends() + r.insideBackends()
		if r.clusterIP {
			cluster[key.Addr]++
		}
		if e, held := p.held[key]; held && recordOf(e.f) == r {
			right[key] = true
		} else {
			others = append(others, strange{key, r.class})
		}
		return nil
	})
	// Each backend with affinity is a member; each address is there once.
	slots[members], slots[clusterIPs] = slots[sticky], len(cluster)
	for _, k := range []kind{backends, sticky, members, clusterIPs} {
		if n := g.sets[k].count; n >= 0 && n != slots[k] {
			ok = false
		}
	}
	if err != nil || !ok {
		return false, err
	}

	var lasting, limited bool
	ch := &p.ch
	for _, o := range others {
		lasting = lasting || o.affinity() > 0
		limited = limited || o.has(flagLimited)
		ch.key = appendKey(ch.key[:0], o.key)
		ch.put(true, i, services, ch.key, nil)
		n, k := len(ch.key), slotKind(o.class)
		for s := range o.backends() {
			ch.key = appendSlot(ch.key[:n], uint32(s))
			ch.put(true, i, k, ch.key, nil)
		}
		for s := range o.insideBackends() {
			ch.key = appendSlot(ch.key[:n], insideSlot+uint32(s))
			ch.put(true, i, k, ch.key, nil)
		}
	}
	none := newBitset(0)
	for key, e := range p.held {
		if familyOf(key.Addr) != i || right[key] {
			continue
		}
		lasting = lasting || classOf(e.f).affinity() > 0
		limited = limited || e.f.Restricted
		p.addMissing(i, e, none)
	}
	for a := range cluster {
		if p.clusterIP[a] == 0 {
			ch.put(true, i, clusterIPs, a.AsSlice(), nil)
		}
	}
	for a := range p.clusterIP {
		if familyOf(a) == i && cluster[a] == 0 {
			ch.put(false, i, clusterIPs, a.AsSlice(), nil)
		}
	}
	if lasting {
		if err := p.compareKeys(i, members, p.wantMembers(i)); err != nil {
			return false, err
		}
	}
	if limited {
		if err := p.compareSources(i); err != nil {
			return false, err
		}
	}
	return true, nil
}
