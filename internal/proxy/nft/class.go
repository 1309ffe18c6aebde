package nft

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"time"

	"fairway.dev/fairway/internal/proxy/state"
)

// class is all that decides how a packet to a frontend is treated, except
// which backends it has: frontends of one class share a chain. It is made of
// two words, so that a class means the same in every table and after a
// restart:
//
//	counts  number of backends, of inside backends << 16
//	flags   flags, affinity seconds << 8
//
// The classes map has them as its key; the services map has them in the middle
// of its data, see record.
type class struct{ counts, flags uint32 }

// Flags of a class.
const (
	modeMask     = 0b111  // what decides about masquerade: state.Masquerade and
	flagInside   = 1 << 2 // inside clients go to inside backends
	flagNodePort = 1 << 3 // any address of this node: the key has none
	flagLimited  = 1 << 4 // only clients in the sources set
	flagReject   = 1 << 5 // clients that get no backend are refused aloud
	flagServed   = 1 << 6 // there is some backend

	flagBits = 8
)

// maxAffinity is what the bits hold; the API allows a day.
const maxAffinity = (1<<(32-flagBits) - 1) * time.Second

func classOf(f *state.Frontend) class {
	n, m := min(len(f.Backends), maxSlots), min(len(f.InsideBackends), maxSlots)
	flags := uint32(f.Masquerade) & 3
	if f.Inside {
		flags |= flagInside
	} else {
		m = 0
	}
	if f.Key.Addr.IsUnspecified() {
		flags |= flagNodePort
	}
	if f.Restricted {
		flags |= flagLimited
	}
	if f.Empty == state.Reject && (n == 0 || f.Inside && m == 0) {
		flags |= flagReject
	}
	if n+m > 0 {
		flags |= flagServed
		secs := uint32(min(f.Affinity, maxAffinity) / time.Second)
		flags |= secs << flagBits
	}
	return class{uint32(n) | uint32(m)<<16, flags}
}

func (c class) backends() int           { return int(c.counts & 0xffff) }
func (c class) insideBackends() int     { return int(c.counts >> 16) }
func (c class) affinity() time.Duration { return time.Duration(c.flags>>flagBits) * time.Second }
func (c class) has(flag uint32) bool    { return c.flags&flag != 0 }

// valid reports whether classOf could have made it; what others put into the
// map need not be.
func (c class) valid() bool {
	return c.flags&3 <= uint32(state.MasqueradeAlways) && c.flags&(1<<7) == 0 &&
		c.has(flagServed) == (c.counts != 0) &&
		(c.has(flagInside) || c.insideBackends() == 0)
}

// key is the class as the classes map's key.
func (c class) key() []byte {
	b := binary.NativeEndian.AppendUint32(nil, c.counts)
	return binary.NativeEndian.AppendUint32(b, c.flags)
}

// record is what the services map has for a frontend: four words, of which the
// two in the middle are for rules. The digest is for the next process that
// finds the table: it tells by this one element whether all the frontend's
// others are right.
type record struct {
	class
	clusterIP bool
	digest    uint64 // of backends and sources; 63 bits
}

// recordWords is the length of a record in registers.
const recordWords = 4

func recordOf(f *state.Frontend) record {
	return record{classOf(f), f.ClusterIP, digest(f)}
}

func (r record) append(b []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(r.digest))
	b = binary.NativeEndian.AppendUint32(b, r.counts)
	b = binary.NativeEndian.AppendUint32(b, r.flags)
	high := uint32(r.digest >> 32)
	if r.clusterIP {
		high |= 1 << 31
	}
	return binary.NativeEndian.AppendUint32(b, high)
}

// stamp is a number for a frontend and its record. The sum of all frontends'
// is what a table is stamped with.
func (r record) stamp(k state.Key) uint64 {
	h := hash(0x9e3779b97f4a7c15)
	h.addr(k.Addr, uint64(k.Port)<<8|uint64(k.Proto))
	h.mix(r.digest)
	h.mix(uint64(r.counts)<<32 | uint64(r.flags))
	if r.clusterIP {
		h.mix(1)
	}
	return uint64(h)
}

func parseRecord(b []byte) (r record, ok bool) {
	if len(b) != 4*recordWords {
		return r, false
	}
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(b[4*i:]) }
	r.class = class{word(1), word(2)}
	r.clusterIP = word(3)>>31 == 1
	r.digest = uint64(word(3)&(1<<31-1))<<32 | uint64(word(0))
	return r, r.valid()
}

// digest is a hash of a frontend's backends, in slot order, and sources. It
// must be the same in every build that uses this layout.
func digest(f *state.Frontend) uint64 {
	h := hash(0x9e3779b97f4a7c15)
	for _, list := range [][]state.Backend{limit(f.Backends), insideOf(f)} {
		h.mix(uint64(len(list)))
		for _, be := range list {
			h.addr(be.Addr.Addr(), uint64(be.Addr.Port()))
		}
	}
	if f.Restricted {
		for _, s := range f.Sources {
			h.addr(s.Addr(), uint64(s.Bits()))
		}
	}
	return uint64(h) &^ (1 << 63)
}

// hash is a running hash of numbers.
type hash uint64

func (h *hash) mix(v uint64) {
	hi, lo := bits.Mul64(uint64(*h)^v, 0xa0761d6478bd642f)
	*h = hash(hi ^ lo + 0xe7037ed1a0b428db)
}

func (h *hash) addr(a netip.Addr, n uint64) {
	b := a.As16()
	h.mix(binary.BigEndian.Uint64(b[:8]))
	h.mix(binary.BigEndian.Uint64(b[8:]))
	h.mix(n)
}

func parseClassKey(b []byte) (class, bool) {
	if len(b) != 8 {
		return class{}, false
	}
	c := class{binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[4:])}
	return c, c.valid()
}

// chain names the class's chain; different classes have different names.
func (c class) chain(p *Programmer, f *family) string {
	s := fmt.Sprintf("pick%s%s-%d", p.layout, f.suffix, c.backends())
	if c.has(flagInside) {
		s += fmt.Sprintf("-inside-%d", c.insideBackends())
	}
	if a := c.affinity(); a > 0 {
		s += fmt.Sprintf("-sticky-%d", int(a/time.Second))
	}
	if c.has(flagNodePort) {
		s += "-nodeport"
	}
	if c.has(flagLimited) {
		s += "-limited"
	}
	if c.has(flagReject) {
		s += "-reject"
	}
	return s + [...]string{"", "-masq-outside", "-masq"}[c.flags&3]
}

// inner is the chain of a class's inside clients.
func (c class) inner(p *Programmer, f *family) string { return c.chain(p, f) + "-in" }
