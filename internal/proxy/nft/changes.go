package nft

import (
	"net/netip"
	"slices"

	"fairway.dev/fairway/internal/proxy/state"
)

// elemList is encoded elements of one set.
type elemList struct {
	b []byte
	n int
}

func (l *elemList) put(key, data []byte) {
	l.b = appendElem(l.b, key, data, 0)
	l.n++
}

// changes collects what a transaction does to the sets of frontends: within a
// set deletions come before additions, so that a key can have new data. The
// zero value is ready; reset keeps the memory.
type changes struct {
	del, add [len(families)][kinds]elemList
	flush    [len(families)][kinds]bool // delete all there is, before adding
	n        int                        // elements in all of them
	stamp    [len(families)]uint64      // what is added to the stamp

	key, data []byte // scratch
}

func (c *changes) reset() {
	for f := range families {
		c.forget(f)
	}
}

// forget takes back what is recorded for a family.
func (c *changes) forget(f int) {
	for k := range kinds {
		c.n -= c.del[f][k].n + c.add[f][k].n
		c.del[f][k] = elemList{c.del[f][k].b[:0], 0}
		c.add[f][k] = elemList{c.add[f][k].b[:0], 0}
		c.flush[f][k] = false
	}
	c.stamp[f] = 0
}

// size is how many bytes it keeps.
func (c *changes) size() (n int) {
	for f := range families {
		for k := range kinds {
			n += cap(c.del[f][k].b) + cap(c.add[f][k].b)
		}
	}
	return n
}

// emit writes the changes of a family into a batch.
func (c *changes) emit(b *batch, f int, g *generation) {
	for k := range kinds {
		if c.flush[f][k] {
			b.flushSet(g.sets[k].name)
		}
		if l := &c.del[f][k]; l.n > 0 {
			b.elems(true, g.sets[k].name, l.b, l.n)
		}
		if l := &c.add[f][k]; l.n > 0 {
			b.elems(false, g.sets[k].name, l.b, l.n)
		}
	}
}

func (c *changes) put(del bool, f int, k kind, key, data []byte) {
	c.n++
	if del {
		c.del[f][k].put(key, nil)
	} else {
		c.add[f][k].put(key, data)
	}
}

// frontend records how a frontend's elements change. Either may be nil: the
// frontend is new, or goes.
func (c *changes) frontend(old, new *state.Frontend) {
	some := new
	if some == nil {
		some = old
	}
	f := familyOf(some.Key.Addr)
	var was, is state.Frontend
	var wasRecord, isRecord record
	if old != nil {
		was, wasRecord = *old, recordOf(old)
		c.stamp[f] -= wasRecord.stamp(old.Key)
	}
	if new != nil {
		is, isRecord = *new, recordOf(new)
		c.stamp[f] += isRecord.stamp(new.Key)
	}
	c.key = appendKey(c.key[:0], some.Key)
	if old == nil || new == nil || wasRecord != isRecord {
		if old != nil {
			c.put(true, f, services, c.key, nil)
		}
		if new != nil {
			c.data = isRecord.append(c.data[:0])
			c.put(false, f, services, c.key, c.data)
		}
	}
	oldIn, newIn := insideOf(&was), insideOf(&is)
	if from, to := slotKind(wasRecord.class), slotKind(isRecord.class); from == to {
		c.slots(f, from, limit(was.Backends), limit(is.Backends), 0)
		c.slots(f, from, oldIn, newIn, insideSlot)
	} else {
		c.slots(f, from, limit(was.Backends), nil, 0)
		c.slots(f, from, oldIn, nil, insideSlot)
		c.slots(f, to, nil, limit(is.Backends), 0)
		c.slots(f, to, nil, newIn, insideSlot)
	}
	if wasRecord.affinity() > 0 || isRecord.affinity() > 0 {
		c.memberships(f, wasRecord.affinity() > 0, isRecord.affinity() > 0, limit(was.Backends), limit(is.Backends), false)
		c.memberships(f, wasRecord.affinity() > 0, isRecord.affinity() > 0, oldIn, newIn, true)
	}
	if was.Restricted != is.Restricted || !slices.Equal(was.Sources, is.Sources) {
		if was.Restricted {
			c.sources(true, f, was.Sources)
		}
		if is.Restricted {
			c.sources(false, f, is.Sources)
		}
	}
}

// insideOf is a frontend's inside backends, as far as they count.
func insideOf(f *state.Frontend) []state.Backend {
	if !f.Inside {
		return nil
	}
	return limit(f.InsideBackends)
}

// limit cuts what no slot number is left for.
func limit(b []state.Backend) []state.Backend { return b[:min(len(b), maxSlots)] }

// slotKind is the map that a frontend's slots are in.
func slotKind(c class) kind {
	if c.affinity() > 0 {
		return sticky
	}
	return backends
}

// appendSlotData is a backend as its slot's map has it.
func appendSlotData(b []byte, k kind, be state.Backend, inside bool) []byte {
	if k == sticky {
		b = append(b, 0, 0, 0, 0)
	}
	return appendBackend(b, be, inside)
}

// slots records which slots have another backend than before.
func (c *changes) slots(f int, k kind, old, new []state.Backend, first uint32) {
	n := len(c.key)
	for i := range max(len(old), len(new)) {
		if i < len(old) && i < len(new) && old[i] == new[i] {
			continue
		}
		c.key = appendSlot(c.key[:n], first+uint32(i))
		if i < len(old) {
			c.put(true, f, k, c.key, nil)
		}
		if i < len(new) {
			c.data = appendSlotData(c.data[:0], k, new[i], first != 0)
			c.put(false, f, k, c.key, c.data)
		}
	}
	c.key = c.key[:n]
}

// memberships records which backends come and go; moving to another slot is
// neither.
func (c *changes) memberships(f int, had, has bool, old, new []state.Backend, inside bool) {
	if !had {
		old = nil
	}
	if !has {
		new = nil
	}
	gone := map[state.Backend]bool{}
	for i, b := range old {
		if i >= len(new) || new[i] != b {
			gone[b] = true
		}
	}
	n := len(c.key)
	for i, b := range new {
		if i < len(old) && old[i] == b {
			continue
		}
		if gone[b] {
			delete(gone, b)
			continue
		}
		c.key = appendBackend(c.key[:n], b, inside)
		c.put(false, f, members, c.key, nil)
	}
	for b := range gone {
		c.key = appendBackend(c.key[:n], b, inside)
		c.put(true, f, members, c.key, nil)
	}
	c.key = c.key[:n]
}

// sources records all ranges of a frontend.
func (c *changes) sources(del bool, f int, prefixes []netip.Prefix) {
	l := &c.add[f][sources]
	if del {
		l = &c.del[f][sources]
	}
	for _, s := range spans(prefixes, families[f]) {
		var n int
		l.b, n = appendSpan(l.b, c.key, s)
		l.n += n
		c.n += n
	}
}
