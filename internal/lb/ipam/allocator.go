package ipam

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/btree"
)

// Allocator holds who has what. It is not safe for concurrent use.
type Allocator struct {
	// busy says that a port of a common address is taken by something that is
	// no Service. May be nil.
	busy func(netip.Addr, Port) bool

	pools     map[string]*pool
	order     []*pool // by priority, then name
	addresses map[netip.Addr]*address
	services  map[string]*service
	// shared are the addresses held under each share key.
	shared map[string]map[netip.Addr]struct{}

	waiting map[waitKey]*btree.BTreeG[*service]
	pending *btree.BTreeG[*service]
	seq     uint64
	wake    []waitKey

	changed map[string]struct{}
}

type pool struct {
	Pool
	ranges         []Range // merged
	free4, free6   *freeSet
	total4, total6 int64
	used4, used6   int64
	kept           int64
	holders        map[*service]int // number of the pool's addresses it holds
}

type address struct {
	addr   netip.Addr
	pool   string // the pool that has it, or had it last; may be gone
	common bool
	kept   bool
	owners map[*service]struct{}
	// leaving have given it up, but the world may not know yet.
	leaving map[*service]struct{}
	ports   map[Port]*service // which owner answers on it
}

type service struct {
	req     Request
	held    []netip.Addr
	origins map[netip.Addr]string // the pools that held were given out of
	leaving map[netip.Addr]struct{}
	pending *Pending
	seq     uint64 // place in the queue; 0 if it lacks nothing
	waits   []waitKey
}

// waitKey is something that a waiting Service may be served after: an address,
// a pool's addresses of one family, or a share key.
type waitKey struct {
	addr   netip.Addr
	pool   string
	family Family
	share  string
}

// New makes an allocator without pools. busy may be nil; it is asked about
// common addresses only.
func New(busy func(netip.Addr, Port) bool) *Allocator {
	return &Allocator{
		busy:      busy,
		pools:     map[string]*pool{},
		addresses: map[netip.Addr]*address{},
		services:  map[string]*service{},
		shared:    map[string]map[netip.Addr]struct{}{},
		waiting:   map[waitKey]*btree.BTreeG[*service]{},
		pending:   newQueue(),
		changed:   map[string]struct{}{},
	}
}

func newQueue() *btree.BTreeG[*service] {
	return btree.NewG(16, func(a, b *service) bool { return a.seq < b.seq })
}

// SetPools replaces the pools. Those given first win: a pool that overlaps an
// earlier one is not used, and the result says so by its name. Addresses in
// use stay with their holders whatever becomes of their pool, but for Common
// ones. Claims are taken over, as by Take, before anything is given out of the
// new pools.
func (a *Allocator) SetPools(pools []Pool, claims ...Claim) map[string]error {
	rejected := map[string]error{}
	a.pools = map[string]*pool{}
	a.order = nil
	for _, p := range pools {
		n := &pool{Pool: p, ranges: merge(p.Ranges), free4: newFreeSet(p.AvoidBuggy), free6: newFreeSet(false), holders: map[*service]int{}}
		for _, other := range a.order {
			if x, ok := overlap(n.ranges, other.ranges); ok {
				rejected[p.Name] = fmt.Errorf("addresses: %s is also in the older pool %q; take it out of one of them", x, other.Name)
				break
			}
		}
		if rejected[p.Name] != nil {
			n.ranges, n.Closed = nil, true
		}
		for _, r := range n.ranges {
			if r.From.Is4() {
				n.free4.t.ReplaceOrInsert(r)
				n.total4 = addSaturating(n.total4, r.Size())
			} else {
				n.free6.t.ReplaceOrInsert(r)
				n.total6 = addSaturating(n.total6, r.Size())
			}
		}
		a.pools[p.Name] = n
		a.order = append(a.order, n)
	}
	for _, x := range a.addresses {
		x.kept = true
		for _, p := range a.order {
			if find(p.ranges, x.addr) {
				x.pool, x.common, x.kept = p.Name, p.Common, false
				break
			}
		}
		if p := a.pools[x.pool]; p != nil {
			p.account(x, +1)
			for s := range x.owners {
				p.holders[s]++
			}
		}
	}
	slices.SortFunc(a.order, func(x, y *pool) int {
		return cmp.Or(cmp.Compare(y.Priority, x.Priority), cmp.Compare(x.Name, y.Name))
	})
	var lost []*service
	for _, c := range claims {
		a.Take(c)
		if s := a.services[c.Request.Key]; s != nil {
			lost = append(lost, s) // it may want more than it has
		}
	}
	// Holders of nodes' addresses that are gone look for others, then
	// everybody who waits tries again.
	for _, x := range a.addresses {
		if x.common && x.kept {
			lost = slices.AppendSeq(lost, maps.Keys(x.owners))
		}
	}
	slices.SortFunc(lost, func(x, y *service) int { return cmp.Compare(x.req.Key, y.req.Key) })
	for _, s := range lost {
		a.settle(s)
	}
	a.drain()
	a.retryAll()
	// Which pool an address comes from is part of the outcome.
	for key := range a.services {
		a.changed[key] = struct{}{}
	}
	return rejected
}

// Adopt says what a Service held before this allocator was made; of held,
// Addr and Origin count. All Services
// are adopted before the first Set. Addresses that a Service adopted earlier
// holds, and cannot share, are not adopted.
func (a *Allocator) Adopt(req Request, held []Assigned) {
	s := a.service(req.Key)
	s.req = req
	for _, h := range held {
		if slices.Contains(s.held, h.Addr) {
			continue
		}
		c := a.conflict(s, h.Addr)
		a.acquire(s, h.Addr, h.Origin)
		if c != nil {
			a.release(s, h.Addr)
		}
	}
	a.changed[req.Key] = struct{}{}
}

// Take has a Service that holds nothing hold what it claims, as far as that is
// in a pool and free, or can be shared. Set or SetPools has to follow.
func (a *Allocator) Take(c Claim) {
	s, known := a.services[c.Request.Key]
	if known && len(s.held) > 0 {
		return
	}
	if !known {
		s = newService(c.Request.Key)
	}
	before := s.req
	s.req = c.Request
	for _, addr := range c.Addrs {
		if a.poolOf(addr) != nil && !slices.Contains(s.held, addr) && a.conflict(s, addr) == nil {
			a.services[c.Request.Key] = s
			a.acquire(s, addr, "")
		}
	}
	if len(s.held) == 0 {
		s.req = before
	}
}

// Set says what a Service asks for, now or for the first time, and returns
// what it has. What it holds and may keep it keeps; addresses are given up
// only when what replaces them is there, or when somebody else has a better
// right to them.
func (a *Allocator) Set(req Request) Outcome {
	s := a.service(req.Key)
	// Wake those who waited for a port, a key or a policy of this one's to
	// change, on both sides of the change.
	a.wakeAround(s)
	for _, addr := range s.held {
		a.unindex(s, addr)
	}
	s.req = req
	for _, addr := range s.held {
		a.index(s, addr)
	}
	a.settle(s)
	a.wakeAround(s)
	a.drain()
	return a.Get(req.Key)
}

// Remove gives back all that a Service holds, for others to have at once; the
// world knows already that the Service no longer has it. Unknown Services are no error.
func (a *Allocator) Remove(key string) {
	s := a.services[key]
	if s == nil {
		return
	}
	a.wakeAround(s)
	a.dequeue(s)
	for _, x := range slices.Clone(s.held) {
		a.release(s, x)
	}
	a.leave(s)
	delete(a.services, key)
	delete(a.changed, key)
	a.drain()
}

// Confirm says that the world knows what Get returned for a Service: what it
// has given up can go to others.
func (a *Allocator) Confirm(key string) {
	if s := a.services[key]; s != nil && len(s.leaving) > 0 {
		a.leave(s)
		a.drain()
	}
}

// Retry tries again all Services that wait.
func (a *Allocator) Retry() { a.retryAll() }

// Get returns what a Service has; nothing if it is unknown.
func (a *Allocator) Get(key string) Outcome {
	s := a.services[key]
	if s == nil {
		return Outcome{}
	}
	o := Outcome{Pending: s.pending}
	for _, x := range s.held {
		ad := a.addresses[x]
		o.Addresses = append(o.Addresses, Assigned{Addr: x, Pool: ad.pool, Origin: s.origins[x], Kept: ad.kept})
	}
	return o
}

// TakeChanged returns the Services whose outcome may have changed since the
// last call, in no order.
func (a *Allocator) TakeChanged() []string {
	keys := make([]string, 0, len(a.changed))
	for k := range a.changed {
		keys = append(keys, k)
	}
	clear(a.changed)
	return keys
}

func (a *Allocator) service(key string) *service {
	s := a.services[key]
	if s == nil {
		s = newService(key)
		a.services[key] = s
	}
	return s
}

func newService(key string) *service {
	return &service{req: Request{Key: key}, origins: map[netip.Addr]string{}, leaving: map[netip.Addr]struct{}{}}
}

func (a *Allocator) acquire(s *service, addr netip.Addr, hint string) {
	x := a.addresses[addr]
	if x == nil {
		x = &address{addr: addr, pool: hint, kept: true, owners: map[*service]struct{}{}, leaving: map[*service]struct{}{}, ports: map[Port]*service{}}
		if p := a.poolOf(addr); p != nil {
			x.pool, x.common, x.kept = p.Name, p.Common, false
		}
		a.addresses[addr] = x
		if p := a.pools[x.pool]; p != nil {
			p.account(x, +1)
		}
	}
	x.owners[s] = struct{}{}
	delete(x.leaving, s)
	delete(s.leaving, addr)
	s.held = append(s.held, addr)
	s.origins[addr] = cmp.Or(hint, x.pool)
	if p := a.pools[x.pool]; p != nil {
		p.holders[s]++
	}
	a.index(s, addr)
	if key := s.req.ShareKey; key != "" {
		a.wake = append(a.wake, waitKey{share: key})
	}
	a.changed[s.req.Key] = struct{}{}
}

// release takes an address from a Service; nobody else gets it before leave.
func (a *Allocator) release(s *service, addr netip.Addr) {
	a.unindex(s, addr)
	x := a.addresses[addr]
	delete(x.owners, s)
	delete(s.origins, addr)
	s.held = slices.DeleteFunc(s.held, func(h netip.Addr) bool { return h == addr })
	if p := a.pools[x.pool]; p != nil {
		if p.holders[s]--; p.holders[s] == 0 {
			delete(p.holders, s)
		}
	}
	x.leaving[s] = struct{}{}
	s.leaving[addr] = struct{}{}
	a.changed[s.req.Key] = struct{}{}
}

// leave lets others have what the Service has given up.
func (a *Allocator) leave(s *service) {
	for addr := range s.leaving {
		x := a.addresses[addr]
		delete(x.leaving, s)
		if len(x.owners)+len(x.leaving) == 0 {
			delete(a.addresses, addr)
			if p := a.pools[x.pool]; p != nil {
				p.account(x, -1)
			}
		}
		a.wake = append(a.wake, waitKey{addr: addr}, waitKey{pool: x.pool, family: FamilyOf(addr)})
		if key := s.req.ShareKey; key != "" {
			a.wake = append(a.wake, waitKey{share: key})
		}
		for o := range x.owners {
			if key := o.req.ShareKey; key != "" {
				a.wake = append(a.wake, waitKey{share: key})
			}
		}
	}
	clear(s.leaving)
}

// index notes which ports of an address the Service answers on, and that the
// address is held under its share key.
func (a *Allocator) index(s *service, addr netip.Addr) {
	x := a.addresses[addr]
	for _, p := range s.req.Ports {
		if x.ports[p] == nil {
			x.ports[p] = s
		}
	}
	if key := s.req.ShareKey; key != "" {
		if a.shared[key] == nil {
			a.shared[key] = map[netip.Addr]struct{}{}
		}
		a.shared[key][addr] = struct{}{}
	}
}

// unindex is the reverse of index.
func (a *Allocator) unindex(s *service, addr netip.Addr) {
	x := a.addresses[addr]
	for _, p := range s.req.Ports {
		if x.ports[p] == s {
			delete(x.ports, p)
		}
	}
	key := s.req.ShareKey
	if key == "" {
		return
	}
	for o := range x.owners {
		if o != s && o.req.ShareKey == key {
			return
		}
	}
	delete(a.shared[key], addr)
	if len(a.shared[key]) == 0 {
		delete(a.shared, key)
	}
}

func (a *Allocator) poolOf(addr netip.Addr) *pool {
	for _, p := range a.order {
		if find(p.ranges, addr) {
			return p
		}
	}
	return nil
}

func addSaturating(a, b int64) int64 {
	if s := a + b; s >= a {
		return s
	}
	return 1<<63 - 1
}
