package nft

import (
	"encoding/binary"
	"fmt"
	"time"

	"fairway.dev/fairway/internal/proxy/state"
)

// class is all that decides how a packet to a frontend is treated, except
// which backends it has: frontends of one class share a chain. It is made of
// two words, which the services map holds as data and the classes map has as
// its key, so that a class means the same in every table and after a restart:
//
//	word 0  number of backends, for people who read the map; no rule does
//	word 1  number of backends, of inside backends << 16
//	word 2  flags, affinity seconds << 8
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

// appendData is the class as the services map's data.
func (c class) appendData(b []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, c.counts&0xffff)
	b = binary.NativeEndian.AppendUint32(b, c.counts)
	return binary.NativeEndian.AppendUint32(b, c.flags)
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
