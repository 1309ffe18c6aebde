package ipam

import (
	"slices"

	"github.com/google/btree"
)

// enqueue has a Service wait at a place in the queue.
func (a *Allocator) enqueue(s *service, seq uint64, waits []waitKey) {
	s.seq = seq
	slices.SortFunc(waits, compareWait)
	s.waits = slices.Compact(waits)
	a.pending.ReplaceOrInsert(s)
	for _, k := range s.waits {
		q := a.waiting[k]
		if q == nil {
			q = newQueue()
			a.waiting[k] = q
		}
		q.ReplaceOrInsert(s)
	}
}

func compareWait(a, b waitKey) int {
	if c := a.addr.Compare(b.addr); c != 0 {
		return c
	}
	switch {
	case a == b:
		return 0
	case a.pool != b.pool:
		return compareString(a.pool, b.pool)
	case a.share != b.share:
		return compareString(a.share, b.share)
	}
	return int(a.family) - int(b.family)
}

func compareString(a, b string) int {
	if a < b {
		return -1
	}
	return 1
}

func (a *Allocator) dequeue(s *service) {
	if s.seq == 0 {
		return
	}
	a.pending.Delete(s)
	for _, k := range s.waits {
		q := a.waiting[k]
		q.Delete(s)
		if q.Len() == 0 {
			delete(a.waiting, k)
		}
	}
	s.seq, s.waits = 0, nil
}

// wakeAround wakes those who wait for something about the addresses that a
// Service holds: its ports, its share key, its policy.
func (a *Allocator) wakeAround(s *service) {
	for _, addr := range s.held {
		a.wake = append(a.wake, waitKey{addr: addr})
		if x := a.addresses[addr]; x.common {
			a.wake = append(a.wake, waitKey{pool: x.pool, family: FamilyOf(addr)})
		}
	}
	if len(s.held) > 0 && s.req.ShareKey != "" {
		a.wake = append(a.wake, waitKey{share: s.req.ShareKey})
	}
}

// drain serves those who wait for what has been woken, in the order of the
// queue.
func (a *Allocator) drain() {
	for len(a.wake) > 0 {
		k := a.wake[0]
		a.wake = a.wake[1:]
		var after uint64
		for {
			q := a.waiting[k]
			if q == nil || k.pool != "" && a.exhausted(k) {
				break
			}
			s := next(q, after)
			if s == nil {
				break
			}
			after = s.seq
			a.settle(s)
		}
	}
	a.wake = nil
}

// retryAll serves everybody who waits, as far as possible.
func (a *Allocator) retryAll() {
	var after uint64
	for {
		s := next(a.pending, after)
		if s == nil {
			break
		}
		after = s.seq
		a.settle(s)
	}
	a.drain()
}

func (a *Allocator) exhausted(k waitKey) bool {
	p := a.pools[k.pool]
	if p == nil || p.Closed {
		return true
	}
	if p.Common {
		return false
	}
	_, ok := p.free(k.family).min()
	return !ok
}

func next(q *btree.BTreeG[*service], after uint64) (s *service) {
	q.AscendGreaterOrEqual(&service{seq: after + 1}, func(x *service) bool { s = x; return false })
	return s
}
