package raw

import (
	"net/netip"
	"sync"
	"sync/atomic"
)

// Counts are of one address since it was claimed last.
type Counts struct{ Requests, Responses, Announcements uint64 }

// Add adds up what several links counted.
func (c Counts) Add(o Counts) Counts {
	return Counts{c.Requests + o.Requests, c.Responses + o.Responses, c.Announcements + o.Announcements}
}

// Counters count for one address. They are safe for concurrent use.
type Counters struct{ Requests, Responses, Announcements atomic.Uint64 }

// Table has the addresses that are answered for. Its zero value is empty. It is
// safe for concurrent use.
type Table struct {
	mu   sync.RWMutex
	mine map[netip.Addr]*Counters
}

// Add adds an address; false if it was there.
func (t *Table) Add(a netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mine == nil {
		t.mine = map[netip.Addr]*Counters{}
	}
	if t.mine[a] != nil {
		return false
	}
	t.mine[a] = &Counters{}
	return true
}

// Remove removes an address; false if it was not there.
func (t *Table) Remove(a netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.mine[a]
	delete(t.mine, a)
	return ok
}

// Find returns an address's counters; nil if it is not there.
func (t *Table) Find(a netip.Addr) *Counters {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.mine[a]
}

// Counts calls f for each address.
func (t *Table) Counts(f func(netip.Addr, Counts)) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for a, c := range t.mine {
		f(a, Counts{c.Requests.Load(), c.Responses.Load(), c.Announcements.Load()})
	}
}
