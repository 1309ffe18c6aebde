package network

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
)

// maxSlots bounds the addresses of one node that are tracked; a /64 has more
// than anybody uses.
const maxSlots = 1 << 16

// ipam hands out the addresses of one node's Pod CIDRs. A slot is the place of
// an address in its CIDR, the same in both families. A released slot goes to
// the end of the queue: an address is used again only when all others have
// been, which keeps connections and caches of a dead Pod away from a new one.
type ipam struct {
	mu    sync.Mutex
	cidrs []netip.Prefix
	file  string
	free  []int // queue of slots
	used  map[int]bool
	last  int
}

// newIPAM resumes after the last slot that file remembers.
func newIPAM(cidrs []netip.Prefix, file string) *ipam {
	p := &ipam{cidrs: cidrs, file: file, used: map[int]bool{}}
	if data, err := os.ReadFile(file); err == nil {
		// An unreadable memory costs only the order.
		json.Unmarshal(data, &p.last) //nolint:errcheck
	}
	// Slot 0 is the network, 1 is kept for a router, the last is the broadcast.
	n := maxSlots
	for _, c := range cidrs {
		if host := c.Addr().BitLen() - c.Bits(); host < 16 {
			n = min(n, 1<<host-1)
		}
	}
	const first = 2
	p.last = max(p.last, first-1)
	for i := range max(n-first, 0) {
		p.free = append(p.free, first+(p.last-first+1+i+n-first)%(n-first))
	}
	return p
}

// allocate takes the slot that has been free for longest.
func (p *ipam) allocate() (slot int, addrs []netip.Addr, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) == 0 {
		return 0, nil, fmt.Errorf("Pod CIDRs %v: all %d addresses are in use; give nodes larger Pod CIDRs or run more nodes", p.cidrs, len(p.used))
	}
	slot, p.free = p.free[0], p.free[1:]
	p.used[slot] = true
	p.last = slot
	if data, err := json.Marshal(slot); err == nil {
		if os.MkdirAll(filepath.Dir(p.file), 0o700) == nil {
			os.WriteFile(p.file, data, 0o600) //nolint:errcheck // only the order is lost
		}
	}
	return slot, p.addrs(slot), nil
}

func (p *ipam) addrs(slot int) []netip.Addr {
	var out []netip.Addr
	for _, c := range p.cidrs {
		out = append(out, nthAddr(c, uint64(slot)))
	}
	return out
}

// claim marks the slot of an address in use, for a Pod found running.
func (p *ipam) claim(addrs []netip.Addr) (slot int, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, s := range p.free {
		if got := p.addrs(s); len(addrs) > 0 && len(got) > 0 && got[0] == addrs[0] {
			p.free = append(p.free[:i:i], p.free[i+1:]...)
			p.used[s] = true
			return s, true
		}
	}
	return 0, false
}

func (p *ipam) release(slot int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used[slot] {
		delete(p.used, slot)
		p.free = append(p.free, slot)
	}
}
