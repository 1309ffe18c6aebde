package nft

import (
	"net/netip"
	"slices"
)

// span is a range of addresses of one family, both ends included.
type span struct{ lo, hi netip.Addr }

// spans are the addresses of a family in prefixes, as sorted ranges that
// neither overlap nor touch: an interval set takes no others.
func spans(prefixes []netip.Prefix, f *family) []span {
	var all []span
	for _, x := range prefixes {
		if x.Addr().Is6() == f.v6 {
			x = x.Masked()
			all = append(all, span{x.Addr(), lastOf(x)})
		}
	}
	slices.SortFunc(all, func(a, b span) int { return a.lo.Compare(b.lo) })
	merged := all[:0]
	for _, s := range all {
		if n := len(merged); n > 0 {
			last := &merged[n-1]
			if next := last.hi.Next(); !next.IsValid() || s.lo.Compare(next) <= 0 {
				if last.hi.Less(s.hi) {
					last.hi = s.hi
				}
				continue
			}
		}
		merged = append(merged, s)
	}
	return merged
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// appendSpan encodes a range as the two elements of an interval set, its first
// key and the one behind its last, each with the same bytes in front. Without
// such bytes a range up to the last address of all has no end.
//
// The prefix ends in the padding of a port, zeros, which takes up the carry of
// a range that ends with the last address. So an interval of a concatenation
// is an interval of byte strings, and a plain tree serves it at the cost of its
// depth, where nft's own intervals in concatenations copy the set on every
// change.
func appendSpan(b, prefix []byte, s span) ([]byte, int) {
	key := appendAddr(append([]byte(nil), prefix...), s.lo)
	b = appendElem(b, key, nil, 0)
	key = appendAddr(key[:len(prefix)], s.hi)
	for i := len(key) - 1; i >= 0; i-- {
		key[i]++
		if key[i] != 0 {
			return appendElem(b, key, nil, elemFlagEnd), 2
		}
	}
	return b, 1
}
