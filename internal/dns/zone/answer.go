package zone

import (
	"bytes"
	"math/rand/v2"
	"net/netip"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/wire"
)

// SchemaVersion is the version of the specification that the names follow.
const SchemaVersion = "1.1.0"

// versionTTL is for how many seconds that may be held: the specification's example.
const versionTTL = 28800

// Outcome is what became of a question.
type Outcome struct {
	// Mine is false for a name that is not the cluster's: ask elsewhere.
	Mine bool
	// Rcode and Flags are for wire.Reply.Finish.
	Rcode int
	Flags uint16
	// Alias is the name, in wire form, that the answer's CNAME leads to and
	// that is left to resolve; nil if the answer is whole.
	Alias []byte
}

// Answer writes the records that answer q into r, which has been started. It
// allocates nothing for the names of Services with a ClusterIP.
func (s *Store) Answer(q *wire.Query, r *wire.Reply) Outcome {
	rest := len(q.Labels) - s.zoneLabels
	if rest < 0 || !bytes.Equal(q.Suffix(rest), s.zone) {
		return s.answerReverse(q, r)
	}
	a := answer{s: s, q: q, r: r, rest: rest}
	a.Mine, a.Flags = true, wire.Authoritative
	if !s.Synced() {
		a.Rcode, a.Flags, r.Error = dns.RcodeServerFailure, 0, dns.ExtendedErrorCodeNotReady
		return a.Outcome
	}
	switch q.Type {
	case dns.TypeAXFR, dns.TypeIXFR:
		a.Rcode = dns.RcodeRefused
		return a.Outcome
	}
	a.name()
	if r.Records() == 0 && a.Flags&wire.Truncated == 0 {
		a.denial(len(q.Labels) - s.zoneLabels)
	}
	return a.Outcome
}

// answer is one answer in the making.
type answer struct {
	Outcome
	s    *Store
	q    *wire.Query
	r    *wire.Reply
	rest int // labels before the zone
}

func (a *answer) wants(typ uint16) bool { return a.q.Type == typ || a.q.Type == dns.TypeANY }

// at is where the question's name begins, counted from its i'th label.
func (a *answer) at(i int) int {
	if i >= len(a.q.Labels) {
		return wire.QuestionName + len(a.q.Name) - 1
	}
	return wire.QuestionName + int(a.q.Labels[i])
}

// label is the i'th label counted from the zone leftwards, the first being 1.
func (a *answer) label(i int) []byte { return a.q.Label(a.rest - i) }

// add notes whether a record of the answer section fitted.
func (a *answer) add(ok bool) bool {
	if !ok {
		a.Flags |= wire.Truncated
	}
	return ok
}

// fits is add for a record of the answer, and nothing for one besides it.
func (a *answer) fits(ok, asAnswer bool) bool { return ok || asAnswer && a.add(false) }

func (a *answer) nxdomain() { a.Rcode = dns.RcodeNameError }

// name finds what the labels before the zone stand for.
func (a *answer) name() {
	if a.rest == 0 {
		a.apex()
		return
	}
	switch top := a.label(1); {
	case string(top) == "svc":
		a.inServices()
	case string(top) == "pod" && a.s.opts.Pods != PodsDisabled:
		a.inPods()
	case string(top) == "dns-version" && a.rest == 1:
		if a.wants(dns.TypeTXT) {
			a.add(a.r.TXT(wire.QuestionName, versionTTL, SchemaVersion))
		}
	case string(top) == "dns":
		if a.rest == 1 {
			return // it only leads to ns
		}
		if a.rest == 2 && string(a.label(2)) == "ns" {
			a.addresses(wire.QuestionName, a.s.nameServer(), true)
			return
		}
		a.nxdomain()
	default:
		a.nxdomain()
	}
}

func (a *answer) apex() {
	if a.wants(dns.TypeSOA) {
		a.add(a.soa(wire.QuestionName))
	}
	if a.wants(dns.TypeNS) {
		if a.add(a.r.Name(wire.QuestionName, dns.TypeNS, a.s.opts.TTL, wire.Target{Labels: nsLabels, Pointer: wire.QuestionName})) {
			owner := a.r.Len() - len(nsLabels) - 2
			a.r.Additional()
			a.q.Type = dns.TypeANY
			a.addresses(owner, a.s.nameServer(), false)
			a.q.Type = dns.TypeNS
		}
	}
}

var (
	nsLabels         = []byte("\x02ns\x03dns")
	hostmasterLabels = []byte("\x0ahostmaster")
)

// soa writes the zone's start of authority; the zone's name is at offset at.
func (a *answer) soa(at int) bool {
	return a.r.SOA(at, a.s.opts.TTL, wire.SOA{
		MName:  wire.Target{Labels: nsLabels, Pointer: at},
		RName:  wire.Target{Labels: hostmasterLabels, Pointer: at},
		Serial: a.s.serial.Load(), Refresh: 7200, Retry: 1800, Expire: 86400,
		Minimum: a.s.opts.TTL,
	})
}

// denial writes the authority section that says for how long a name, or its
// records of the asked type, may be held not to exist (RFC 2308 section 3).
func (a *answer) denial(zone int) {
	a.r.Authority()
	a.soa(a.at(zone))
}

// nameServer is the entry whose addresses the zone's name server has.
func (s *Store) nameServer() *entry { return s.lookup([]byte(s.nsKey)) }

// inServices answers for names below svc.<zone>.
func (a *answer) inServices() {
	switch {
	case a.rest == 1:
		return
	case a.rest == 2:
		if !a.s.names.has(a.label(2)) {
			a.nxdomain()
		}
		return
	case a.rest > 5:
		a.nxdomain()
		return
	}
	svcAt := a.rest - 3
	e := a.s.lookup(a.q.Name[a.q.Labels[svcAt]:a.q.Labels[a.rest-1]])
	if e == nil || e.svc == nil {
		a.nxdomain()
		return
	}
	switch a.rest {
	case 3:
		a.service(e)
	case 4:
		a.endpoint(e)
	case 5:
		a.port(e)
	}
}

// service answers for <service>.<ns>.svc.<zone>.
func (a *answer) service(e *entry) {
	if e.svc.has&alias != 0 {
		if e.svc.external == nil {
			return
		}
		if a.add(a.r.Name(wire.QuestionName, dns.TypeCNAME, a.s.opts.TTL, wire.Target{Name: e.svc.external})) &&
			a.q.Type != dns.TypeCNAME && a.q.Type != dns.TypeANY {
			a.Alias = e.svc.external
		}
		return
	}
	if e.svc.has&headless != 0 && len(e.v4) == 0 && len(e.v6) == 0 {
		a.nxdomain() // section 2.4.1: no ready endpoint, no name
		return
	}
	a.addresses(wire.QuestionName, e, true)
	if a.q.Type == dns.TypeSRV {
		a.srv(e, nil, nil)
	}
}

// addresses writes the wanted address records of a Service: as the answer, or
// as a help besides it that may be left out.
func (a *answer) addresses(owner int, e *entry, asAnswer bool) {
	if e == nil || e.svc == nil {
		return
	}
	if e.svc.has&headless != 0 {
		a.addressLists(owner, e.v4, e.v6, asAnswer)
		return
	}
	if e.svc.has&has4 != 0 && a.wants(dns.TypeA) {
		a.fits(a.r.A(owner, a.s.opts.TTL, e.svc.v4), asAnswer)
	}
	if e.svc.has&has6 != 0 && a.wants(dns.TypeAAAA) {
		a.fits(a.r.AAAA(owner, a.s.opts.TTL, e.svc.v6), asAnswer)
	}
}

// addressLists writes lists of addresses, each from a random place on and
// round, so that askers who take the first one spread over all.
func (a *answer) addressLists(owner int, v4 [][4]byte, v6 [][16]byte, asAnswer bool) {
	if n := len(v4); n > 0 && a.wants(dns.TypeA) {
		first := rand.IntN(n)
		for i := range n {
			if !a.fits(a.r.A(owner, a.s.opts.TTL, v4[(first+i)%n]), asAnswer) {
				return
			}
		}
	}
	if n := len(v6); n > 0 && a.wants(dns.TypeAAAA) {
		first := rand.IntN(n)
		for i := range n {
			if !a.fits(a.r.AAAA(owner, a.s.opts.TTL, v6[(first+i)%n]), asAnswer) {
				return
			}
		}
	}
}

// endpoint answers for <hostname>.<service>.<ns>.svc.<zone>.
func (a *answer) endpoint(e *entry) {
	if e.svc.has&alias != 0 {
		a.nxdomain()
		return
	}
	label := a.label(4)
	if len(label) > 1 && label[0] == '_' {
		// _tcp alone has no records, but names below it do.
		if !e.hasPort(nil, label[1:]) {
			a.nxdomain()
		}
		return
	}
	if h := e.hosts[string(label)]; h != nil {
		a.addressLists(wire.QuestionName, h.v4, h.v6, true)
		if a.q.Type == dns.TypeSRV {
			a.endpointSRV(e, nil, nil, func(sl *slice, i int) bool { return sl.host(i) == string(label) })
		}
		return
	}
	// An endpoint without a hostname goes by its address: 10-244-1-7.
	addr, ok := parseDashed(label)
	if !ok || !e.has(addr) {
		a.nxdomain()
		return
	}
	if addr.Is4() && a.wants(dns.TypeA) {
		a.add(a.r.A(wire.QuestionName, a.s.opts.TTL, addr.As4()))
	}
	if addr.Is6() && a.wants(dns.TypeAAAA) {
		a.add(a.r.AAAA(wire.QuestionName, a.s.opts.TTL, addr.As16()))
	}
	if a.q.Type == dns.TypeSRV {
		b := addr.AsSlice()
		a.endpointSRV(e, nil, nil, func(sl *slice, i int) bool { return sl.host(i) == "" && bytes.Equal(sl.addr(i), b) })
	}
}

// has reports whether a ready endpoint without a hostname has the address.
func (e *entry) has(addr netip.Addr) bool {
	b := addr.AsSlice()
	for _, sl := range e.slices {
		for i := sl.index(b, 0); i >= 0; i = sl.index(b, i+1) {
			if sl.host(i) == "" && e.counts(sl, i) {
				return true
			}
		}
	}
	return false
}

// counts reports whether an endpoint counts: by itself, or because the Service
// wants all.
func (e *entry) counts(sl *slice, i int) bool {
	return e.svc.has&publishNotReady != 0 || sl.ready(i)
}

// inPods answers for names below pod.<zone>: <dashed address>.<ns>.
func (a *answer) inPods() {
	switch {
	case a.rest == 1:
		return
	case a.rest > 3:
		a.nxdomain()
		return
	}
	ns := a.label(2)
	if !a.s.names.has(ns) {
		a.nxdomain()
		return
	}
	if a.rest == 2 {
		return
	}
	addr, ok := parseDashed(a.label(3))
	if ok && a.s.opts.Pods == PodsVerified {
		ok = a.s.podIP.has(ns, addr.As16())
	}
	if !ok {
		a.nxdomain()
		return
	}
	if addr.Is4() && a.wants(dns.TypeA) {
		a.add(a.r.A(wire.QuestionName, a.s.opts.TTL, addr.As4()))
	}
	if addr.Is6() && a.wants(dns.TypeAAAA) {
		a.add(a.r.AAAA(wire.QuestionName, a.s.opts.TTL, addr.As16()))
	}
}

// parseDashed reads an address that has dashes for its dots or colons.
func parseDashed(label []byte) (netip.Addr, bool) {
	dashes := bytes.Count(label, []byte{'-'})
	if len(label) > 45 || dashes < 2 {
		return netip.Addr{}, false
	}
	sep := byte(':')
	if dashes == 3 && !bytes.Contains(label, []byte("--")) {
		sep = '.'
	}
	a, err := netip.ParseAddr(string(bytes.ReplaceAll(label, []byte{'-'}, []byte{sep})))
	return a, err == nil
}

// appendDashed is parseDashed's inverse, with the length byte of a label.
func appendDashed(b []byte, addr netip.Addr) []byte {
	start := len(b)
	b = append(b, 0)
	b = addr.AppendTo(b)
	for i, c := range b[start+1:] {
		if c == '.' || c == ':' {
			b[start+1+i] = '-'
		}
	}
	// A host name neither begins nor ends with a dash (RFC 952); a zero means the same.
	if b[start+1] == '-' {
		b = append(b[:start+1], append([]byte{'0'}, b[start+1:]...)...)
	}
	if b[len(b)-1] == '-' {
		b = append(b, '0')
	}
	b[start] = byte(len(b) - start - 1)
	return b
}
