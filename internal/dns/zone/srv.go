package zone

import (
	"net/netip"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/wire"
)

// Every answer to SRV is as good as the other (RFC 2782's priority and weight
// are not prescribed by the specification).
const (
	srvPriority = 0
	srvWeight   = 100
)

// port answers for _<port>._<proto>.<service>.<ns>.svc.<zone>.
func (a *answer) port(e *entry) {
	name, proto := a.label(5), a.label(4)
	if e.svc.has&alias != 0 || len(name) < 2 || name[0] != '_' || len(proto) < 2 || proto[0] != '_' ||
		!e.hasPort(name[1:], proto[1:]) {
		a.nxdomain()
		return
	}
	if a.wants(dns.TypeSRV) {
		a.srv(e, name[1:], proto[1:])
	}
}

// matches reports whether a port has the name and protocol asked for, both nil for any.
func (p *port) matches(name, proto []byte) bool {
	if proto != nil && p.proto != string(proto) {
		return false
	}
	if name != nil && p.name != string(name) {
		return false
	}
	// Asked by protocol alone, only what has a name counts: _tcp leads nowhere else.
	return p.name != "" || name == nil && proto == nil
}

// hasPort reports whether the Service has an SRV record of that name and
// protocol, any name if name is nil.
func (e *entry) hasPort(name, proto []byte) bool {
	if e.svc.has&headless == 0 {
		for i := range e.svc.ports {
			if e.svc.ports[i].matches(name, proto) {
				return true
			}
		}
		return false
	}
	for _, sl := range e.slices {
		for i := range sl.ports {
			if !sl.ports[i].matches(name, proto) {
				continue
			}
			for j := range sl.len() {
				if e.counts(sl, j) {
					return true
				}
			}
		}
	}
	return false
}

// srv writes the SRV records of the ports that match, for a name with the
// Service's own three labels before the zone at its end; and the addresses of
// their targets as far as there is room.
func (a *answer) srv(e *entry, name, proto []byte) {
	if e.svc.has&headless != 0 {
		a.endpointSRV(e, name, proto, nil)
		return
	}
	target := 0
	for i := range e.svc.ports {
		p := &e.svc.ports[i]
		if !p.matches(name, proto) || e.svc.hasBefore(i, name, proto) {
			continue
		}
		off, ok := a.r.SRV(wire.QuestionName, a.s.opts.TTL, srvPriority, srvWeight, p.number, wire.Target{Name: a.ownName()})
		if !a.add(ok) {
			return
		}
		target = off
	}
	if target != 0 {
		a.r.Additional()
		a.more(target, e.svc.has&has4 != 0, e.svc.v4, e.svc.has&has6 != 0, e.svc.v6)
	}
}

// hasBefore reports whether a port before the i'th makes the same record: one
// number may be there for several protocols, but a record only once (RFC 2181 section 5).
func (s *service) hasBefore(i int, name, proto []byte) bool {
	for j := range i {
		if s.ports[j].number == s.ports[i].number && s.ports[j].matches(name, proto) {
			return true
		}
	}
	return false
}

// ownName is the Service's name, its letters as the asker wrote them.
func (a *answer) ownName() []byte { return a.q.RawName()[a.q.Labels[a.rest-3]:] }

// endpointID tells one endpoint of a Service from another: by its hostname, or
// if it has none by its address.
type endpointID struct {
	host string
	addr [16]byte
}

func (s *slice) id(i int) endpointID {
	if h := s.host(i); h != "" {
		return endpointID{host: h}
	}
	return endpointID{addr: key16(s.addr(i))}
}

// srvTarget is a target written, for the additional section.
type srvTarget struct {
	id   endpointID
	addr []byte
}

// endpointSRV writes a record for each ready endpoint and port that match; of
// the endpoints only those that only reports true for, all if it is nil.
func (a *answer) endpointSRV(e *entry, name, proto []byte, only func(*slice, int) bool) {
	type record struct {
		endpointID
		port uint16
	}
	own := a.ownName()
	var targets []srvTarget
	// An endpoint may be in a slice of each family, or in two while it moves; a
	// port number may be there for several protocols.
	seen := map[record]bool{}
	offsets := map[endpointID]int{}
	var buf [64]byte
	for _, sl := range e.slices {
		for i := range sl.len() {
			if !e.counts(sl, i) || only != nil && !only(sl, i) {
				continue
			}
			id, any := sl.id(i), false
			for j := range sl.ports {
				p := &sl.ports[j]
				if !p.matches(name, proto) {
					continue
				}
				any = true
				r := record{id, p.number}
				if seen[r] {
					continue
				}
				seen[r] = true
				off, ok := a.r.SRV(wire.QuestionName, a.s.opts.TTL, srvPriority, srvWeight, p.number, wire.Target{Labels: sl.label(buf[:0], i), Name: own})
				if !a.add(ok) {
					return
				}
				if offsets[id] == 0 {
					offsets[id] = off
				}
			}
			if any {
				targets = append(targets, srvTarget{id, sl.addr(i)})
			}
		}
	}
	a.targetAddresses(targets, offsets)
}

// targetAddresses writes each target's addresses once, as far as they fit.
// offsets is where in the message each target's name is.
func (a *answer) targetAddresses(targets []srvTarget, offsets map[endpointID]int) {
	a.r.Additional()
	type address struct {
		endpointID
		addr [16]byte
	}
	done := map[address]bool{}
	for _, t := range targets {
		k := address{t.id, key16(t.addr)}
		if done[k] {
			continue
		}
		done[k] = true
		var ok bool
		if len(t.addr) == 4 {
			ok = a.r.A(offsets[t.id], a.s.opts.TTL, [4]byte(t.addr))
		} else {
			ok = a.r.AAAA(offsets[t.id], a.s.opts.TTL, [16]byte(t.addr))
		}
		if !ok {
			return
		}
	}
}

func (a *answer) more(owner int, is4 bool, v4 [4]byte, is6 bool, v6 [16]byte) {
	if is4 {
		a.r.A(owner, a.s.opts.TTL, v4)
	}
	if is6 {
		a.r.AAAA(owner, a.s.opts.TTL, v6)
	}
}

// label appends an endpoint's own label, length byte included: its hostname,
// or its address with dashes.
func (s *slice) label(b []byte, i int) []byte {
	if h := s.host(i); h != "" {
		return append(append(b, byte(len(h))), h...)
	}
	addr, _ := netip.AddrFromSlice(s.addr(i))
	return appendDashed(b, addr)
}
