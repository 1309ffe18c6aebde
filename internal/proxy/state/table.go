package state

import (
	"iter"
	"slices"
)

// Table holds the frontends of all Services as one node sees them. Its methods
// take changed objects, in any order (slices may come before their Service and
// stay after it); Sync answers with what all changes since the last Sync come
// to. Cost is that of the Services that changed, whatever the table holds.
//
// A Table is not safe for concurrent use. It keeps the objects it is given.
type Table struct {
	view     View
	entries  map[Name]*entry
	claims   map[Key]*claim // the winner of each Key, and by next who waits
	dirty    []*entry
	resolver resolver
	scratch  [2]map[Key]*Frontend // buffers of resolve
	stats    Stats
}

// entry is a Service and all that belongs to its name.
type entry struct {
	name    Name
	service *Service // nil: there are slices, but no Service (that is ours)
	slices  []*Slice // by name
	ports   []settled
	owned   []*Frontend // what it claims now
	health  HealthCheck
	dirty   bool
}

// Stats counts what a table holds.
type Stats struct {
	Services, Slices, Frontends int
	// NoLocal counts Service ports that have usable endpoints, but none that
	// policy Local lets this node use: [internal, external][IPv4, IPv6].
	NoLocal [2][2]int
}

// HealthCheck is what a health check node port answers.
type HealthCheck struct {
	Service Name
	Port    uint16 // zero: the Service has none (any more)
	Serves  [2]bool
	// LocalReady counts the ready endpoints on this node: [IPv4, IPv6].
	LocalReady [2]int
}

// Stale names connections that must not go on as they are: those the kernel
// remembers for a Key (of UDP or SCTP) towards a backend that no longer serves.
// The zero Backend means those that were let pass untranslated, before the Key
// had a backend. Gone means all that were translated, whereto ever: there is no
// frontend of that Key any more.
type Stale struct {
	Key     Key
	Backend Backend
	Gone    bool
}

// Result is the outcome of a Sync.
type Result struct {
	Diff   Diff
	Health []HealthCheck // those that changed
	Stale  []Stale       // valid once Diff is programmed
}

// NewTable returns an empty table.
func NewTable(v View) *Table {
	return &Table{view: v, entries: map[Name]*entry{}, claims: map[Key]*claim{}}
}

// View returns what the table is resolved for.
func (t *Table) View() View { return t.view }

// Stats counts what the table held at the last Sync.
func (t *Table) Stats() Stats { return t.stats }

// SetView changes the node's place. If that makes a difference every Service
// is resolved again at the next Sync.
func (t *Table) SetView(v View) {
	if t.view.equal(v) {
		return
	}
	t.view = v
	for _, e := range t.entries {
		t.mark(e)
	}
}

// SetService takes a new or changed Service in.
func (t *Table) SetService(s *Service) {
	e := t.entry(s.Name)
	if e.service == nil {
		t.stats.Services++
	}
	e.service = s
	t.mark(e)
}

// DeleteService forgets a Service; its slices stay.
func (t *Table) DeleteService(n Name) {
	if e := t.entries[n]; e != nil && e.service != nil {
		t.stats.Services--
		e.service = nil
		t.mark(e)
	}
}

// SetSlice takes a new or changed slice in. old is the version that it
// replaces, or nil; DeleteSlice is SetSlice(old, nil).
func (t *Table) SetSlice(old, s *Slice) {
	if old != nil && (s == nil || old.Owner() != s.Owner()) {
		if e := t.entries[old.Owner()]; e != nil {
			if i, ok := e.find(old.Name); ok {
				e.slices = slices.Delete(e.slices, i, i+1)
				t.stats.Slices--
				t.mark(e)
			}
		}
	}
	if s == nil {
		return
	}
	e := t.entry(s.Owner())
	i, ok := e.find(s.Name)
	if ok {
		e.slices[i] = s
	} else {
		e.slices = slices.Insert(e.slices, i, s)
		t.stats.Slices++
	}
	t.mark(e)
}

// DeleteSlice forgets a slice.
func (t *Table) DeleteSlice(old *Slice) { t.SetSlice(old, nil) }

func (e *entry) find(name string) (int, bool) {
	return slices.BinarySearchFunc(e.slices, name, func(s *Slice, n string) int {
		switch {
		case s.Name < n:
			return -1
		case s.Name > n:
			return 1
		}
		return 0
	})
}

func (t *Table) entry(n Name) *entry {
	e := t.entries[n]
	if e == nil {
		e = &entry{name: n}
		t.entries[n] = e
	}
	return e
}

func (t *Table) mark(e *entry) {
	if !e.dirty {
		e.dirty = true
		t.dirty = append(t.dirty, e)
	}
}

// Dirty reports whether a Sync would have anything to look at.
func (t *Table) Dirty() bool { return len(t.dirty) > 0 }

// All yields every frontend, in no order. The table must not change meanwhile.
func (t *Table) All() iter.Seq[*Frontend] {
	return func(yield func(*Frontend) bool) {
		for _, c := range t.claims {
			if !yield(c.frontend) {
				return
			}
		}
	}
}

// Serving returns for every frontend of UDP and SCTP all backends that serve its
// Service, whether this node uses them or not: where connections under way may
// lead.
func (t *Table) Serving() map[Key][]Backend {
	out := map[Key][]Backend{}
	for _, e := range t.entries {
		for i := range e.ports {
			p := &e.ports[i]
			if p.port.Proto == TCP {
				continue
			}
			for _, f := range e.owned {
				if p.has(f) && t.claims[f.Key].owner == e.name {
					out[f.Key] = p.serving
				}
			}
		}
	}
	return out
}

// has reports whether a frontend is one of the port's.
func (s *settled) has(f *Frontend) bool {
	return f.Key.Proto == s.port.Proto && f.Key.Addr.Is6() == s.v6 &&
		(f.Key.Port == s.port.Port || f.Key.Addr.IsUnspecified() && f.Key.Port == s.port.NodePort)
}

// Sync resolves what changed and returns the difference it makes.
func (t *Table) Sync() Result {
	var res Result
	touched := map[Key]*Frontend{} // what stood there before this Sync
	for _, e := range t.dirty {
		e.dirty = false
		t.resolve(e, touched, &res)
		if e.service == nil && len(e.slices) == 0 {
			delete(t.entries, e.name)
		}
	}
	if cap(t.dirty) > 1024 {
		t.dirty = nil
	}
	clear(t.dirty)
	t.dirty = t.dirty[:0]

	for k, before := range touched {
		now := t.claims[k]
		switch {
		case now == nil && before != nil:
			res.Diff.Remove = append(res.Diff.Remove, k)
		case now != nil && (before == nil || now.frontend != before && !now.frontend.equal(before)):
			res.Diff.Set = append(res.Diff.Set, now.frontend)
		}
		if k.Proto != TCP {
			res.Stale = appendStale(res.Stale, k, before, now)
		}
	}
	t.stats.Frontends = len(t.claims)
	return res
}

// appendStale adds what a frontend's coming and going leaves behind. (Backends
// that stop serving are found when their Service is resolved.)
func appendStale(out []Stale, k Key, before *Frontend, now *claim) []Stale {
	if before != nil && now == nil {
		// Not only to the backends it picked last: policy and topology may have
		// left flows to others under way.
		out = append(out, Stale{Key: k, Gone: true})
	}
	had := before != nil && len(before.Backends)+len(before.InsideBackends) > 0
	has := now != nil && len(now.frontend.Backends)+len(now.frontend.InsideBackends) > 0
	if has && !had {
		out = append(out, Stale{Key: k})
	}
	return out
}

// resolve brings one entry up to date.
func (t *Table) resolve(e *entry, touched map[Key]*Frontend, res *Result) {
	var claims []claim
	var ports []settled
	if e.service != nil {
		claims, ports = t.resolver.resolve(&t.view, e.service, e.slices, e.ports)
	}
	for i := range e.ports {
		t.countNoLocal(&e.ports[i], -1)
	}
	for i := range ports {
		t.countNoLocal(&ports[i], +1)
	}

	note := func(k Key) {
		if _, ok := touched[k]; !ok {
			var f *Frontend
			if c := t.claims[k]; c != nil {
				f = c.frontend
			}
			touched[k] = f
		}
	}
	// Keep what is as it was, so that unchanged frontends stay the same objects
	// and contested Keys keep their line. A Service may claim a Key twice, say
	// as load-balancer address and as external IP: the better claim counts.
	had, has := empty(&t.scratch[0], len(e.owned)), empty(&t.scratch[1], len(claims))
	for _, f := range e.owned {
		had[f.Key] = f
	}
	owned := make([]*Frontend, 0, len(claims))
	for i := range claims {
		c := &claims[i]
		k := c.frontend.Key
		if has[k] != nil {
			continue
		}
		f := c.frontend
		switch old := had[k]; {
		case old != nil && old.equal(f) && t.rankOf(k, e.name) == c.rank:
			f = old
		default:
			note(k)
			if old != nil {
				t.unclaim(k, e.name)
			}
			t.claim(&claim{frontend: f, owner: c.owner, rank: c.rank})
		}
		has[k] = f
		owned = append(owned, f)
	}
	for _, old := range e.owned {
		if has[old.Key] == nil {
			note(old.Key)
			t.unclaim(old.Key, e.name)
		}
	}
	res.Stale = goneServing(res.Stale, e.ports, ports, owned)
	e.owned, e.ports = owned, ports
	t.resolveHealth(e, res)
}

// goneServing adds the backends of UDP and SCTP ports that served and no longer
// do, for every frontend of the port. Which of the serving ones a frontend
// picks does not matter: policy and topology do not break flows under way.
func goneServing(out []Stale, before, after []settled, owned []*Frontend) []Stale {
	for i := range after {
		now := &after[i]
		if now.port.Proto == TCP {
			continue
		}
		at := slices.IndexFunc(before, func(b settled) bool {
			return b.v6 == now.v6 && b.port.Name == now.port.Name && b.port.Proto == now.port.Proto
		})
		if at < 0 || sameSlots(before[at].serving, now.serving) {
			continue
		}
		for _, b := range before[at].serving {
			if slices.Contains(now.serving, b) {
				continue
			}
			for _, f := range owned {
				if now.has(f) {
					out = append(out, Stale{Key: f.Key, Backend: b})
				}
			}
		}
	}
	return out
}

// empty returns a buffer, emptied, for about n entries. One that has grown far
// beyond that is given up: emptying a map costs what it once held.
func empty[K comparable, V any](m *map[K]V, n int) map[K]V {
	if *m == nil || len(*m) > 1024 && len(*m) > 8*n {
		*m = make(map[K]V, n)
	}
	clear(*m)
	return *m
}

func (t *Table) resolveHealth(e *entry, res *Result) {
	var h HealthCheck
	h.Service = e.name
	if e.service != nil && e.service.HealthCheckNodePort != 0 {
		h.Port = e.service.HealthCheckNodePort
		for i, v6 := range [2]bool{false, true} {
			if _, ok := e.service.clusterIP(v6); ok {
				h.Serves[i] = true
				h.LocalReady[i] = t.resolver.picker.localReady(e.slices, v6, t.view.NodeName)
			}
		}
	}
	if e.health != h && (h.Port != 0 || e.health.Port != 0) {
		res.Health = append(res.Health, h)
	}
	e.health = h
}

func (t *Table) countNoLocal(s *settled, by int) {
	for i, no := range s.noLocal {
		if no {
			t.stats.NoLocal[i][family(s.v6)] += by
		}
	}
}

func (t *Table) rankOf(k Key, owner Name) rank {
	for c := t.claims[k]; c != nil; c = c.next {
		if c.owner == owner {
			return c.rank
		}
	}
	return rankNodePort + 1
}

// claim puts c in line for its Key.
func (t *Table) claim(c *claim) {
	k := c.frontend.Key
	first := t.claims[k]
	if first == nil || c.before(first) {
		c.next = first
		t.claims[k] = c
		return
	}
	at := first
	for at.next != nil && at.next.before(c) {
		at = at.next
	}
	c.next, at.next = at.next, c
}

// unclaim takes a Service's claim out of the line for a Key.
func (t *Table) unclaim(k Key, owner Name) {
	first := t.claims[k]
	if first == nil {
		return
	}
	if first.owner == owner {
		if first.next == nil {
			delete(t.claims, k)
		} else {
			t.claims[k] = first.next
		}
		return
	}
	for at := first; at.next != nil; at = at.next {
		if at.next.owner == owner {
			at.next = at.next.next
			return
		}
	}
}
