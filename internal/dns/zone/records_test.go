package zone_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/dns/zone"
)

// A record is in an answer once, however many ports, slices and Services lead
// to it (RFC 2181 section 5), and none that there should be is left out.
func TestRecordsOnce(t *testing.T) {
	ports := []discoveryv1.EndpointPort{epPort("dns", corev1.ProtocolUDP, 53), epPort("dns-tcp", corev1.ProtocolTCP, 53)}
	bothDNS := func(s *corev1.Service) {
		s.Spec.Ports = []corev1.ServicePort{{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}, {Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP}}
	}
	s := newStore(t, zone.Options{},
		service("two", []string{"10.3.0.40"}, bothDNS),
		// An endpoint on its way from one slice to another.
		headless("moving", bothDNS),
		slice("moving", "a", []endpoint{{ip: "10.244.0.30"}, {ip: "10.244.0.31", host: "m-0"}}, ports...),
		slice("moving", "b", []endpoint{{ip: "10.244.0.30"}, {ip: "10.244.0.31", host: "m-0"}}, ports...),
		slice("moving", "c", []endpoint{{ip: "fd00::31", host: "m-0"}, {ip: "fd00:1::"}}, ports...),
		// One address, at first not ready and then ready, in one slice.
		service("again", []string{"10.3.0.41"}),
		slice("again", "a", []endpoint{{ip: "10.244.0.32", notReady: true}, {ip: "10.244.0.32"}}),
		// A Pod behind several Services.
		headless("own"), slice("own", "a", []endpoint{{ip: "10.244.0.33", host: "pod-0"}}),
		headless("other"), slice("other", "a", []endpoint{{ip: "10.244.0.33"}}),
		service("front", []string{"10.3.0.42"}), slice("front", "a", []endpoint{{ip: "10.244.0.33"}}),
		// Slices that a Service of another type has left behind.
		service("address", []string{""}, func(s *corev1.Service) {
			s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "192.0.2.1"}
		}),
		slice("address", "a", []endpoint{{ip: "10.244.0.34"}, {ip: "10.244.0.35", host: "left"}}),
	)
	const below = ".default.svc.cluster.local."
	for _, tt := range []struct {
		name          string
		typ           uint16
		answer, extra []string // without owner, time to live and class
		rcode         int
	}{
		{name: "two" + below, typ: dns.TypeSRV, answer: []string{"SRV 0 100 53 two" + below}, extra: []string{"A 10.3.0.40"}},
		{name: "_dns._udp.two" + below, typ: dns.TypeSRV, answer: []string{"SRV 0 100 53 two" + below}, extra: []string{"A 10.3.0.40"}},
		{name: "moving" + below, typ: dns.TypeSRV,
			answer: []string{"SRV 0 100 53 10-244-0-30.moving" + below, "SRV 0 100 53 fd00-1--0.moving" + below, "SRV 0 100 53 m-0.moving" + below},
			extra:  []string{"A 10.244.0.30", "A 10.244.0.31", "AAAA fd00:1::", "AAAA fd00::31"}},
		{name: "m-0.moving" + below, typ: dns.TypeSRV, answer: []string{"SRV 0 100 53 m-0.moving" + below}, extra: []string{"A 10.244.0.31", "AAAA fd00::31"}},
		{name: "m-0.moving" + below, typ: dns.TypeA, answer: []string{"A 10.244.0.31"}},
		{name: "10-244-0-30.moving" + below, typ: dns.TypeSRV, answer: []string{"SRV 0 100 53 10-244-0-30.moving" + below}, extra: []string{"A 10.244.0.30"}},
		// The label may spell the address in any way; the target is always the same.
		{name: "fd00-1--.moving" + below, typ: dns.TypeSRV, answer: []string{"SRV 0 100 53 fd00-1--0.moving" + below}, extra: []string{"AAAA fd00:1::"}},
		{name: "30.0.244.10.in-addr.arpa.", typ: dns.TypePTR, answer: []string{"PTR 10-244-0-30.moving" + below}},
		{name: "31.0.244.10.in-addr.arpa.", typ: dns.TypePTR, answer: []string{"PTR m-0.moving" + below}},
		{name: "10-244-0-32.again" + below, typ: dns.TypeA, answer: []string{"A 10.244.0.32"}},
		{name: "32.0.244.10.in-addr.arpa.", typ: dns.TypePTR, answer: []string{"PTR 10-244-0-32.again" + below}},
		{name: "33.0.244.10.in-addr.arpa.", typ: dns.TypePTR, answer: []string{"PTR pod-0.own" + below, "PTR 10-244-0-33.other" + below}},
		// An address's name exists for other types too.
		{name: "33.0.244.10.in-addr.arpa.", typ: dns.TypeA},
		{name: "40.0.3.10.in-addr.arpa.", typ: dns.TypeSOA},
		{name: "address" + below, typ: dns.TypeA},
		{name: "address" + below, typ: dns.TypeSRV},
		{name: "10-244-0-34.address" + below, typ: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "left.address" + below, typ: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "_https._tcp.address" + below, typ: dns.TypeSRV, rcode: dns.RcodeNameError},
	} {
		m, out := ask(t, s, tt.name, tt.typ, wire.MaxSize)
		short := func(rrs []dns.RR) (s []string) {
			for _, rr := range rrs {
				s = append(s, strings.Join(strings.Fields(rr.String())[3:], " "))
			}
			return s
		}
		got, extra := short(m.Answer), short(m.Extra)
		if tt.typ != dns.TypePTR { // whose first name is the best
			slices.Sort(got)
		}
		slices.Sort(extra)
		if !out.Mine || m.Rcode != tt.rcode || !slices.Equal(got, tt.answer) || !slices.Equal(extra, tt.extra) {
			t.Errorf("%s %s: %s %q and %q, want %s %q and %q", tt.name, dns.Type(tt.typ), dns.RcodeToString[m.Rcode], got, extra,
				dns.RcodeToString[tt.rcode], tt.answer, tt.extra)
		}
	}
	if m, out := ask(t, s, "34.0.244.10.in-addr.arpa.", dns.TypePTR, 512); out.Mine {
		t.Errorf("address that only a slice without use has: %v, want it left to others", m)
	}
}
