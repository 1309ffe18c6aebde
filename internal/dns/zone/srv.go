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
	if e.svc.external != nil || len(name) < 2 || name[0] != '_' || len(proto) < 2 || proto[0] != '_' ||
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
	at := a.rest - 3
	owner := wire.QuestionName
	// The Service's name, its letters as the asker wrote them.
	own := a.q.RawName()[a.q.Labels[at]:]
	if e.svc.has&headless == 0 && a.rest != 4 {
		target := 0
		for i := range e.svc.ports {
			if p := &e.svc.ports[i]; p.matches(name, proto) {
				off, ok := a.r.SRV(owner, a.s.opts.TTL, srvPriority, srvWeight, p.number, wire.Target{Name: own})
				if !a.add(ok) {
					return
				}
				target = off
			}
		}
		if target != 0 {
			a.r.Additional()
			a.more(target, e.svc.has&has4 != 0, e.svc.v4, e.svc.has&has6 != 0, e.svc.v6)
		}
		return
	}
	a.endpointSRV(e, name, proto, own)
}

// srvTarget is a target written, for the additional section.
type srvTarget struct {
	off   int
	slice *slice
	index int
}

// endpointSRV writes a record for each ready endpoint and port that match.
func (a *answer) endpointSRV(e *entry, name, proto, own []byte) {
	only := []byte(nil)
	if a.rest == 4 {
		only = a.label(4)
	}
	type hostPort struct {
		host string
		port uint16
	}
	var targets []srvTarget
	var seen map[hostPort]bool // an endpoint with a hostname may be in a slice of each family
	var buf [64]byte
	for _, sl := range e.slices {
		for i := range sl.len() {
			if !e.counts(sl, i) {
				continue
			}
			label := sl.label(buf[:0], i)
			if only != nil && string(only) != string(label[1:]) {
				continue
			}
			for j := range sl.ports {
				p := &sl.ports[j]
				if !p.matches(name, proto) {
					continue
				}
				if host := sl.host(i); host != "" {
					k := hostPort{host, p.number}
					if seen[k] {
						targets = append(targets, srvTarget{0, sl, i})
						continue
					}
					if seen == nil {
						seen = map[hostPort]bool{}
					}
					seen[k] = true
				}
				off, ok := a.r.SRV(wire.QuestionName, a.s.opts.TTL, srvPriority, srvWeight, p.number, wire.Target{Labels: label, Name: own})
				if !a.add(ok) {
					return
				}
				targets = append(targets, srvTarget{off, sl, i})
			}
		}
	}
	a.targetAddresses(targets)
}

// targetAddresses writes each target's addresses once, as far as they fit.
func (a *answer) targetAddresses(targets []srvTarget) {
	a.r.Additional()
	offsets := map[string]int{}
	type pair struct {
		slice *slice
		index int
	}
	done := map[pair]bool{}
	for _, t := range targets {
		off := t.off
		if host := t.slice.host(t.index); host != "" {
			if off == 0 {
				off = offsets[host]
			} else if offsets[host] == 0 {
				offsets[host] = off
			}
		}
		if off == 0 || done[pair{t.slice, t.index}] {
			continue
		}
		done[pair{t.slice, t.index}] = true
		b := t.slice.addr(t.index)
		var ok bool
		if len(b) == 4 {
			ok = a.r.A(off, a.s.opts.TTL, [4]byte(b))
		} else {
			ok = a.r.AAAA(off, a.s.opts.TTL, [16]byte(b))
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
