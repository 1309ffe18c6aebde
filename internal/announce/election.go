package announce

import (
	"hash/fnv"
	"net/netip"
)

// rank orders nodes for an address; the highest announces it (rendezvous
// hashing: a node that comes or goes moves only the addresses it gets or had).
// All versions of Fairway in a cluster must agree on it.
func rank(node string, addr netip.Addr) uint64 {
	h := fnv.New64a()
	h.Write([]byte(node))
	a := addr.As16()
	h.Write([]byte{0})
	h.Write(a[:])
	return mix(h.Sum64())
}

// mix spreads FNV's differences over all bits (the finalizer of splitmix64).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// beats says whether node a goes before node b for an address; any node goes
// before none ("").
func beats(a, b string, addr netip.Addr) bool {
	if b == "" || a == "" {
		return b == "" && a != ""
	}
	x, y := rank(a, addr), rank(b, addr)
	return x > y || x == y && a < b
}

// elect returns the node that announces an address, of those that are eligible
// and alive; "" if there is none.
func elect(addr netip.Addr, eligible map[string]struct{}, alive map[string]struct{}) string {
	small, large := eligible, alive
	if len(alive) < len(eligible) {
		small, large = alive, eligible
	}
	best, top := "", uint64(0)
	for n := range small {
		if _, ok := large[n]; !ok {
			continue
		}
		if r := rank(n, addr); best == "" || r > top || r == top && n < best {
			best, top = n, r
		}
	}
	return best
}
