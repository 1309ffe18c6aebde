package nft

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/proxy/state"
)

// bitset is a set of small numbers.
type bitset []uint64

func newBitset(n int) bitset      { return make(bitset, (n+63)/64) }
func (b bitset) set(i int)        { b[i/64] |= 1 << (i % 64) }
func (b bitset) has(i int) bool   { return i/64 < len(b) && b[i/64]&(1<<(i%64)) != 0 }
func (e entry) slotCount() int    { return len(limit(e.f.Backends)) + len(insideOf(e.f)) }
func (e entry) serviceBit() int   { return e.off + e.slotCount() }
func (e entry) slotBit(i int) int { return e.off + i }
func (e entry) bits() int         { return e.slotCount() + 1 }

// slot finds the backend of a slot number, and its place among the frontend's
// bits.
func (e entry) slot(slot uint32) (be state.Backend, inside bool, bit int, ok bool) {
	n := len(limit(e.f.Backends))
	if slot < insideSlot {
		if int(slot) >= n {
			return be, false, 0, false
		}
		return e.f.Backends[slot], false, e.slotBit(int(slot)), true
	}
	in := insideOf(e.f)
	if slot -= insideSlot; int(slot) >= len(in) {
		return be, true, 0, false
	}
	return in[slot], true, e.slotBit(n + int(slot)), true
}

// compare reads all elements of a family's adopted generation and records in
// p.ch what has to change. It keeps one bit per element that should be there,
// and those that should not.
func (p *Programmer) compare(i int) error {
	total := 0
	for key, e := range p.held {
		if familyOf(key.Addr) == i {
			e.off = total
			p.held[key] = e
			total += e.bits()
		}
	}
	seen := newBitset(total)
	if err := p.compareServices(i, seen); err != nil {
		return err
	}
	for _, k := range []kind{backends, sticky} {
		if err := p.compareSlots(i, k, seen); err != nil {
			return err
		}
	}
	for _, e := range p.held {
		if familyOf(e.f.Key.Addr) == i {
			p.addMissing(i, e, seen)
		}
	}
	if err := p.compareKeys(i, clusterIPs, p.wantClusterIPs(i)); err != nil {
		return err
	}
	if err := p.compareKeys(i, members, p.wantMembers(i)); err != nil {
		return err
	}
	return p.compareSources(i)
}

func (p *Programmer) compareServices(i int, seen bitset) error {
	var want []byte
	mark := p.ch.mark(i, services)
	return p.elements(p.gens[i].sets[services].name, func() { p.ch.rewind(i, services, mark) }, func(el element) error {
		key, rest, ok := families[i].parseKey(el.key)
		e, held := p.held[key]
		if ok && len(rest) == 0 && held {
			if want = recordOf(e.f).append(want[:0]); bytes.Equal(want, el.data) && el.plain(key) {
				seen.set(e.serviceBit())
				return nil
			}
		}
		p.ch.put(true, i, services, el.key, nil)
		return nil
	})
}

func (p *Programmer) compareSlots(i int, k kind, seen bitset) error {
	var want []byte
	mark := p.ch.mark(i, k)
	return p.elements(p.gens[i].sets[k].name, func() { p.ch.rewind(i, k, mark) }, func(el element) error {
		key, rest, ok := families[i].parseKey(el.key)
		e, held := p.held[key]
		if ok && len(rest) == 4 && held && el.plain(key) && slotKind(classOf(e.f)) == k {
			if be, inside, bit, ok := e.slot(binary.NativeEndian.Uint32(rest)); ok {
				if want = appendSlotData(want[:0], k, be, inside); bytes.Equal(want, el.data) {
					seen.set(bit)
					return nil
				}
			}
		}
		p.ch.put(true, i, k, el.key, nil)
		return nil
	})
}

// plain reports whether the element's key has nothing but zeros where nothing
// belongs; no packet would find it otherwise.
func (el *element) plain(k state.Key) bool {
	return bytes.HasPrefix(el.key, appendKey(nil, k))
}

// addMissing records the elements of a frontend that were not seen.
func (p *Programmer) addMissing(i int, e entry, seen bitset) {
	ch := &p.ch
	ch.key = appendKey(ch.key[:0], e.f.Key)
	if !seen.has(e.serviceBit()) {
		ch.data = recordOf(e.f).append(ch.data[:0])
		ch.put(false, i, services, ch.key, ch.data)
	}
	n, k := len(ch.key), slotKind(classOf(e.f))
	add := func(b []state.Backend, bit int, first uint32) {
		for s := range b {
			if seen.has(e.slotBit(bit + s)) {
				continue
			}
			ch.key = appendSlot(ch.key[:n], first+uint32(s))
			ch.data = appendSlotData(ch.data[:0], k, b[s], first != 0)
			ch.put(false, i, k, ch.key, ch.data)
		}
	}
	outside := limit(e.f.Backends)
	add(outside, 0, 0)
	add(insideOf(e.f), len(outside), insideSlot)
}

// mark and rewind let a dump that is begun anew forget what it recorded.
func (c *changes) mark(f int, k kind) elemList { return c.del[f][k] }

func (c *changes) rewind(f int, k kind, to elemList) {
	c.n -= c.del[f][k].n - to.n
	c.del[f][k] = elemList{c.del[f][k].b[:len(to.b)], to.n}
}

// compareKeys compares a set without data. want maps every key to false, and
// is used up.
func (p *Programmer) compareKeys(i int, k kind, want map[string]bool) error {
	mark := p.ch.mark(i, k)
	restart := func() {
		p.ch.rewind(i, k, mark)
		for key := range want {
			want[key] = false
		}
	}
	err := p.elements(p.gens[i].sets[k].name, restart, func(el element) error {
		if _, ok := want[string(el.key)]; ok {
			want[string(el.key)] = true
		} else {
			p.ch.put(true, i, k, el.key, nil)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for key, there := range want {
		if !there {
			p.ch.put(false, i, k, []byte(key), nil)
		}
	}
	return nil
}

func (p *Programmer) wantClusterIPs(i int) map[string]bool {
	want := map[string]bool{}
	for a := range p.clusterIP {
		if familyOf(a) == i {
			want[string(a.AsSlice())] = false
		}
	}
	return want
}

func (p *Programmer) wantMembers(i int) map[string]bool {
	want := map[string]bool{}
	var key []byte
	for _, e := range p.held {
		if familyOf(e.f.Key.Addr) != i || classOf(e.f).affinity() == 0 {
			continue
		}
		key = appendKey(key[:0], e.f.Key)
		n := len(key)
		for _, b := range limit(e.f.Backends) {
			want[string(appendBackend(key[:n], b, false))] = false
		}
		for _, b := range insideOf(e.f) {
			want[string(appendBackend(key[:n], b, true))] = false
		}
	}
	return want
}

// compareSources compares the intervals. If any is wrong all are written anew:
// there are few, and the kernel refuses to add an end without its beginning.
func (p *Programmer) compareSources(i int) error {
	var all changes
	for _, e := range p.held {
		if familyOf(e.f.Key.Addr) == i && e.f.Restricted {
			all.key = appendKey(all.key[:0], e.f.Key)
			all.sources(false, i, e.f.Sources)
		}
	}
	want := map[string]bool{}
	attrs(all.add[i][sources].b, func(_ uint16, v []byte) {
		end := byte(0)
		if attr(v, unix.NFTA_SET_ELEM_FLAGS) != nil {
			end = 1
		}
		want[string(append(bytes.Clone(attr(attr(v, unix.NFTA_SET_ELEM_KEY), unix.NFTA_DATA_VALUE)), end))] = false
	})
	there, same := 0, true
	err := p.elements(p.gens[i].sets[sources].name, func() { there, same = 0, true }, func(el element) error {
		end := byte(0)
		if el.flags&elemFlagEnd != 0 {
			end = 1
		}
		_, ok := want[string(append(bytes.Clone(el.key), end))]
		same = same && ok
		there++
		return nil
	})
	if err != nil || same && there == len(want) {
		return err
	}
	p.ch.flush[i][sources] = true
	p.ch.add[i][sources] = all.add[i][sources]
	p.ch.n += all.add[i][sources].n
	return nil
}
