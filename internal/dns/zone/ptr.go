package zone

import (
	"bytes"
	"net/netip"
	"slices"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/wire"
)

// answerReverse answers for an address's name below in-addr.arpa or ip6.arpa.
// An address that nothing here has is left to others, but for those of the
// cluster's own ranges.
func (s *Store) answerReverse(q *wire.Query, r *wire.Reply) Outcome {
	addr, zoneAt, ok := reverseAddr(q)
	if !ok {
		return Outcome{}
	}
	a := answer{s: s, q: q, r: r}
	a.Mine, a.Flags = true, wire.Authoritative
	if !s.Synced() {
		a.Rcode, a.Flags, r.Error = dns.RcodeServerFailure, 0, dns.ExtendedErrorCodeNotReady
		return a.Outcome
	}
	found := s.pointers(addr, func(t wire.Target) bool {
		return q.Type != dns.TypePTR && q.Type != dns.TypeANY ||
			a.add(r.Name(wire.QuestionName, dns.TypePTR, s.opts.TTL, t))
	})
	if found {
		if r.Records() == 0 && a.Flags&wire.Truncated == 0 {
			a.reverseDenial(zoneAt)
		}
		return a.Outcome
	}
	for _, p := range s.opts.ReverseZones {
		if p.Contains(addr) {
			a.nxdomain()
			a.reverseDenial(zoneAt)
			return a.Outcome
		}
	}
	return Outcome{}
}

// pointers yields the names that an address has and reports whether it has any.
func (s *Store) pointers(addr netip.Addr, yield func(wire.Target) bool) bool {
	svc, in := s.rev.find(addr.As16())
	if svc != nil {
		yield(s.serviceName(nil, svc.ns, svc.name))
		return true
	}
	// A Pod behind several Services has first the name that was meant for it, if
	// it has a hostname; then that in each headless Service, where the
	// specification wants one (section 2.4.3); only without those any other.
	const (
		meant = iota
		inHeadless
		other
		ranks
	)
	var best [ranks][]wire.Target
	b := addr.AsSlice()
	for _, sl := range in {
		e := s.lookup([]byte(serviceKey(sl.ns, sl.service)))
		if e == nil || e.svc == nil || e.svc.has&alias != 0 {
			continue
		}
		for i := sl.index(b, 0); i >= 0; i = sl.index(b, i+1) {
			if !e.counts(sl, i) {
				continue
			}
			rank := other
			if sl.host(i) != "" {
				rank = meant
			} else if e.svc.has&headless != 0 {
				rank = inHeadless
			}
			t := s.serviceName(sl.label(nil, i), sl.ns, sl.service)
			// It may be in two slices while it moves from one to the other.
			if !slices.ContainsFunc(best[rank], func(o wire.Target) bool { return bytes.Equal(o.Labels, t.Labels) }) {
				best[rank] = append(best[rank], t)
			}
		}
	}
	found := false
	for rank, targets := range best {
		if rank == other && found {
			break
		}
		for _, t := range targets {
			found = true
			if !yield(t) {
				return true
			}
		}
	}
	return found
}

// serviceName is [label.]name.ns.svc.<zone>.
func (s *Store) serviceName(label []byte, ns, name string) wire.Target {
	return wire.Target{Labels: append(append(label, serviceKey(ns, name)...), "\x03svc"...), Name: s.zone}
}

// reverseDenial says for how long there is no such record. The authority it
// names is the in-addr.arpa or ip6.arpa that the question ends with.
func (a *answer) reverseDenial(zoneAt int) {
	a.r.Authority()
	at := a.at(zoneAt)
	a.r.SOA(at, a.s.opts.TTL, wire.SOA{
		MName:  wire.Target{Labels: nsLabels, Name: a.s.zone},
		RName:  wire.Target{Labels: hostmasterLabels, Name: a.s.zone},
		Serial: a.s.serial.Load(), Refresh: 7200, Retry: 1800, Expire: 86400, Minimum: a.s.opts.TTL,
	})
}

// reverseAddr reads the address out of a name such as 1.0.3.10.in-addr.arpa
// (RFC 1035 section 3.5) or 32 nibbles below ip6.arpa (RFC 3596 section 2.5),
// and says at which label in-addr or ip6 is.
func reverseAddr(q *wire.Query) (netip.Addr, int, bool) {
	n := len(q.Labels)
	if n < 2 || string(q.Label(n-1)) != "arpa" {
		return netip.Addr{}, 0, false
	}
	switch zone := q.Label(n - 2); {
	case n == 6 && string(zone) == "in-addr":
		var b [4]byte
		for i := range b {
			v, ok := octet(q.Label(3 - i))
			if !ok {
				return netip.Addr{}, 0, false
			}
			b[i] = v
		}
		return netip.AddrFrom4(b), n - 2, true
	case n == 34 && string(zone) == "ip6":
		var b [16]byte
		for i := range 32 {
			l := q.Label(31 - i)
			if len(l) != 1 {
				return netip.Addr{}, 0, false
			}
			v, ok := nibble(l[0])
			if !ok {
				return netip.Addr{}, 0, false
			}
			b[i/2] = b[i/2]<<4 | v
		}
		return netip.AddrFrom16(b), n - 2, true
	}
	return netip.Addr{}, 0, false
}

func octet(l []byte) (byte, bool) {
	v := 0
	if len(l) == 0 || len(l) > 3 || l[0] == '0' && len(l) > 1 {
		return 0, false
	}
	for _, c := range l {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = v*10 + int(c-'0')
	}
	return byte(v), v < 256
}

func nibble(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
