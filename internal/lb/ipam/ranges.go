package ipam

import (
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/btree"
)

// Family is an IP family.
type Family uint8

// The IP families.
const (
	V4 Family = 4
	V6 Family = 6
)

// String is Kubernetes' name of the family.
func (f Family) String() string {
	if f == V4 {
		return "IPv4"
	}
	return "IPv6"
}

// FamilyOf is the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return V4
	}
	return V6
}

// Range is the addresses From to To, both included, of one family.
type Range struct{ From, To netip.Addr }

// ParseRange reads a prefix ("192.0.2.0/24"), a range
// ("192.0.2.10-192.0.2.20") or a single address.
func ParseRange(s string) (Range, error) {
	fail := func(why string) (Range, error) {
		return Range{}, fmt.Errorf("%q: %s (write a prefix like 192.0.2.0/24, a range like 192.0.2.10-192.0.2.20, or an address)", s, why)
	}
	if from, to, ok := strings.Cut(s, "-"); ok {
		a, err := netip.ParseAddr(strings.TrimSpace(from))
		if err != nil {
			return fail("start of the range is no IP address")
		}
		b, err := netip.ParseAddr(strings.TrimSpace(to))
		if err != nil {
			return fail("end of the range is no IP address")
		}
		switch {
		case a.Zone() != "" || b.Zone() != "":
			return fail("addresses with a zone cannot be given out")
		case a.Is4In6() || b.Is4In6():
			return fail("write IPv4 addresses in dotted form")
		case a.Is4() != b.Is4():
			return fail("the ends are of different families")
		case b.Less(a):
			return fail("the end comes before the start")
		}
		return Range{a, b}, nil
	}
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return fail("not a prefix")
		}
		if p.Addr().Is4In6() {
			return fail("write IPv4 addresses in dotted form")
		}
		if p != p.Masked() {
			return fail(fmt.Sprintf("host bits are set; did you mean %s?", p.Masked()))
		}
		return Range{p.Addr(), last(p)}, nil
	}
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil {
		return fail("not an IP address")
	}
	if a.Zone() != "" || a.Is4In6() {
		return fail("addresses with a zone and IPv4 addresses in IPv6 form cannot be given out")
	}
	return Range{a, a}, nil
}

func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// String is the range as ParseRange reads it.
func (r Range) String() string {
	if r.From == r.To {
		return r.From.String()
	}
	return r.From.String() + "-" + r.To.String()
}

// Contains says whether a is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return r.From.BitLen() == a.BitLen() && !a.Less(r.From) && !r.To.Less(a)
}

// Size counts the addresses; beyond 2^63-1 it is 2^63-1.
func (r Range) Size() int64 {
	from, to := new(big.Int).SetBytes(r.From.AsSlice()), new(big.Int).SetBytes(r.To.AsSlice())
	n := to.Sub(to, from)
	n.Add(n, big.NewInt(1))
	if !n.IsInt64() {
		return math.MaxInt64
	}
	return n.Int64()
}

// merge sorts ranges (IPv4 first) and joins those that overlap or touch.
func merge(ranges []Range) []Range {
	rs := slices.Clone(ranges)
	slices.SortFunc(rs, func(a, b Range) int { return a.From.Compare(b.From) })
	var out []Range
	for _, r := range rs {
		if n := len(out); n > 0 && out[n-1].From.BitLen() == r.From.BitLen() {
			prev := &out[n-1]
			if next := prev.To.Next(); !next.IsValid() || !next.Less(r.From) {
				if prev.To.Less(r.To) {
					prev.To = r.To
				}
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

// find returns the range that contains a, of ranges made by merge.
func find(ranges []Range, a netip.Addr) bool {
	i, found := slices.BinarySearchFunc(ranges, a, func(r Range, a netip.Addr) int { return r.From.Compare(a) })
	if found {
		return true
	}
	return i > 0 && ranges[i-1].Contains(a)
}

// overlap returns an address that both lists contain; both made by merge.
func overlap(a, b []Range) (netip.Addr, bool) {
	for i, j := 0, 0; i < len(a) && j < len(b); {
		from := a[i].From
		if from.Less(b[j].From) {
			from = b[j].From
		}
		if a[i].Contains(from) && b[j].Contains(from) {
			return from, true
		}
		if a[i].To.Less(b[j].To) {
			i++
		} else {
			j++
		}
	}
	return netip.Addr{}, false
}

// buggy are the IPv4 addresses that some clients take for a network's own or
// for its broadcast address.
func buggy(a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	b := a.As4()[3]
	return b == 0 || b == 255
}

// freeSet is the addresses of one family that can be given out unasked, as
// disjoint ranges that do not touch.
type freeSet struct {
	t     *btree.BTreeG[Range]
	avoid bool // leave buggy addresses out; they are dropped when met
}

func newFreeSet(avoid bool) *freeSet {
	return &freeSet{t: btree.NewG(32, func(a, b Range) bool { return a.From.Less(b.From) }), avoid: avoid}
}

// min returns the lowest address.
func (f *freeSet) min() (netip.Addr, bool) {
	for {
		r, ok := f.t.Min()
		if !ok {
			return netip.Addr{}, false
		}
		if !f.avoid || !buggy(r.From) {
			return r.From, true
		}
		f.take(r.From)
	}
}

// take removes an address, if it is there.
func (f *freeSet) take(a netip.Addr) {
	r, ok := f.atOrBefore(a)
	if !ok || !r.Contains(a) {
		return
	}
	f.t.Delete(r)
	if r.From != a {
		f.t.ReplaceOrInsert(Range{r.From, a.Prev()})
	}
	if r.To != a {
		f.t.ReplaceOrInsert(Range{a.Next(), r.To})
	}
}

// put adds an address.
func (f *freeSet) put(a netip.Addr) {
	if f.avoid && buggy(a) {
		return
	}
	r := Range{a, a}
	if prev, ok := f.atOrBefore(a); ok {
		if prev.Contains(a) {
			return
		}
		if prev.To.Next() == a {
			f.t.Delete(prev)
			r.From = prev.From
		}
	}
	if next, ok := f.t.Get(Range{From: a.Next()}); ok && a.Next().IsValid() {
		f.t.Delete(next)
		r.To = next.To
	}
	f.t.ReplaceOrInsert(r)
}

func (f *freeSet) atOrBefore(a netip.Addr) (r Range, ok bool) {
	f.t.DescendLessOrEqual(Range{From: a}, func(x Range) bool { r, ok = x, true; return false })
	return r, ok
}
