package nft

import (
	"context"
	"fmt"
	"net/netip"
)

const (
	// bulkElements is how many elements go into one transaction while a new
	// generation is filled: the kernel takes larger ones at worse speed.
	bulkElements = 10_000
	// correctable is how many elements a table found may be wrong in before a
	// new generation is cheaper than one transaction of corrections.
	correctable = 50_000
)

// needs counts the elements the frontends of each family make, and their
// stamp.
func (p *Programmer) needs() (n [2][kinds]int) {
	p.stamp = [2]uint64{}
	for key, e := range p.held {
		i, r := familyOf(key.Addr), recordOf(e.f)
		p.stamp[i] += r.stamp(key)
		slots := r.backends() + r.insideBackends()
		n[i][services]++
		n[i][slotKind(r.class)] += slots
		if r.affinity() > 0 {
			n[i][members] += slots
		}
	}
	for a := range p.clusterIP {
		n[familyOf(a)][clusterIPs]++
	}
	return n
}

// replace programs p.held into whatever the kernel has.
func (p *Programmer) replace(ctx context.Context) error {
	gen, err := p.c.generation()
	if err != nil {
		return err
	}
	deep := p.monitor.cover(gen) || p.deep
	is, err := p.read()
	if err != nil {
		return err
	}
	p.ch.reset()
	p.deep = true // until this has succeeded
	var fresh [2]bool
	need := p.needs()
	for i, f := range families {
		p.gens[i], _ = p.adoptable(f, is, need[i])
		if p.gens[i] == nil || p.fresh {
			fresh[i] = true
			continue
		}
		complete, adopted, err := p.stamped(i, need[i])
		if err != nil {
			return err
		}
		if fresh[i] = !complete; fresh[i] {
			continue
		}
		before := p.ch.n
		if adopted = adopted && !deep; !adopted && !deep {
			if adopted, err = p.adopt(i); err != nil {
				return err
			}
		}
		if !adopted {
			p.ch.forget(i)
			total := 0
			for k := range kinds {
				total += max(need[i][k], p.gens[i].sets[k].count)
			}
			if fresh[i] = total > deepElements; fresh[i] {
				continue
			}
			if err := p.compare(i); err != nil {
				return err
			}
		}
		for k := range kinds {
			// In this transaction the wrong ones count too.
			size := p.gens[i].sets[k].size
			fresh[i] = fresh[i] || size != 0 && need[i][k]+p.ch.del[i][k].n > int(size)
		}
		fresh[i] = fresh[i] || p.ch.n-before > correctable
	}
	if err := p.install(ctx, is, need, fresh); err != nil {
		return err
	}
	p.deep, p.fresh = false, false
	return nil
}

// install writes everything but the elements of frontends (of which there
// shall be need) anew: sets, chains, rules, the node's facts; and p.ch into the
// generations that stay. Those that are fresh are made and filled first, beside
// what is in use. The one transaction at the end puts it all into force and
// deletes what is not ours.
func (p *Programmer) install(ctx context.Context, is *found, need [2][kinds]int, fresh [2]bool) error {
	var err error
	if is == nil {
		if is, err = p.read(); err != nil {
			return err
		}
	}
	for i, f := range families {
		if !fresh[i] {
			p.gens[i].count = need[i]
			continue
		}
		_, serial := p.adoptable(f, is, need[i])
		p.gens[i] = p.newGeneration(f, serial, need[i])
		if err := p.fill(ctx, i, is.table); err != nil {
			return err
		}
		is.table = true
		p.gens[i].count = need[i]
	}
	p.localhost = p.findLocalhost()
	b := p.b
	b.reset()
	p.final(b, is, fresh)
	if err := p.c.commit(b); err != nil {
		return err
	}
	p.forget = false
	p.trim()
	return nil
}

// keptBuffer is how many bytes a buffer keeps between transactions.
const keptBuffer = 1 << 20

// trim gives the memory of large transactions back.
func (p *Programmer) trim() {
	if cap(p.b.b) > keptBuffer {
		p.b = newBatch(p.table)
	}
	if p.ch.size() > keptBuffer {
		p.ch = changes{}
	}
}

// fill makes a family's new generation and adds the elements, in transactions
// of a good size. No rule uses it yet.
func (p *Programmer) fill(ctx context.Context, i int, table bool) error {
	g, b := p.gens[i], p.b
	b.reset()
	if !table {
		b.newTable()
	}
	for _, s := range g.sets {
		b.newSet(s)
	}
	var ch changes
	flush := func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		ch.emit(b, i, g)
		if err := p.c.commit(b); err != nil {
			return fmt.Errorf("fill %s: %w", g.sets[services].name, err)
		}
		b.reset()
		ch.reset()
		return nil
	}
	for _, e := range p.held {
		if familyOf(e.f.Key.Addr) != i {
			continue
		}
		if ch.frontend(nil, e.f); ch.n >= bulkElements {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	for a := range p.clusterIP {
		if familyOf(a) == i {
			ch.put(false, i, clusterIPs, a.AsSlice(), nil)
		}
	}
	ch.put(false, i, stamp, stampKey(p.stamp[i]), nil)
	return flush()
}

// final writes the transaction that puts everything into force.
func (p *Programmer) final(b *batch, is *found, fresh [2]bool) {
	if is.table {
		b.flushRules("")
	}
	b.newTable() // if it is there this wakes it, should somebody have put it to sleep

	// What the table shall consist of.
	sets := map[string]setSpec{}
	chains := p.skeleton()
	p.classes = [2]map[class]int{{}, {}}
	for key, e := range p.held {
		p.classes[familyOf(key.Addr)][classOf(e.f)]++
	}
	for i, f := range families {
		for _, s := range p.fixedSets(f) {
			sets[s.name] = s
		}
		for _, s := range p.gens[i].sets {
			sets[s.name] = s
		}
		for c := range p.classes[i] {
			chains = append(chains, p.classChains(f, p.gens[i], c)...)
		}
	}

	// Away with the rest. No rule is left that would hold it; sets go before
	// the chains that their verdicts hold.
	keep := map[string]bool{}
	for name, s := range is.sets {
		if want, ok := sets[name]; ok && want.fits(s) {
			keep[name] = true
		} else {
			b.deleteSet(name)
		}
	}
	for _, f := range families {
		for _, base := range []string{setClasses, setModes, setPods, setNodePorts, setRanges} {
			if name := p.name(base, f); keep[name] {
				b.flushSet(name)
			}
		}
		if name := p.name(setPodSeen, f); p.forget && keep[name] {
			b.flushSet(name)
		}
	}
	wanted := map[string]chainSpec{}
	for _, c := range chains {
		wanted[c.name] = c
	}
	for name, c := range is.chains {
		want, ok := wanted[name]
		if ok && want.kind == c.kind && want.hook == c.hook && want.priority == c.priority {
			continue
		}
		b.deleteChain(name)
		delete(is.chains, name)
	}

	for i, f := range families {
		for _, s := range p.fixedSets(f) {
			if !keep[s.name] {
				b.newSet(s)
			}
		}
		if fresh[i] {
			continue // made and filled before
		}
		p.ch.emit(b, i, p.gens[i])
		b.flushSet(p.gens[i].sets[stamp].name)
		b.elems(false, p.gens[i].sets[stamp].name, appendElem(nil, stampKey(p.stamp[i]), nil, 0), 1)
	}
	for _, c := range chains {
		if _, there := is.chains[c.name]; !there {
			b.newChain(c)
		}
	}
	for i, f := range families {
		p.facts(b, i, f)
	}
	for _, c := range chains {
		for _, r := range c.rules {
			b.newRule(c.name, r)
		}
	}
}

// facts fills the sets that hold the node's facts and the verdict maps.
func (p *Programmer) facts(b *batch, i int, f *family) {
	ranges := func(set string, prefixes []netip.Prefix) {
		var l elemList
		for _, s := range spans(prefixes, f) {
			var n int
			l.b, n = appendSpan(l.b, nil, s)
			l.n += n
		}
		b.elems(false, p.name(set, f), l.b, l.n)
	}
	ranges(setPods, p.node.PodNetwork.CIDRs)
	ranges(setNodePorts, p.node.NodePortAddrs)
	ranges(setRanges, p.node.ServiceCIDRs)
	var l elemList
	for mode, chain := range p.modes(f) {
		l.b = appendGoto(l.b, host32(mode), chain)
		l.n++
	}
	b.elems(false, p.name(setModes, f), l.b, l.n)
	l = elemList{}
	for c := range p.classes[i] {
		l.b = appendGoto(l.b, c.key(), c.chain(p, f))
		l.n++
	}
	b.elems(false, p.name(setClasses, f), l.b, l.n)
}
