package zone_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/dns/zone"
)

func newStore(t testing.TB, o zone.Options, objects ...runtime.Object) *zone.Store {
	t.Helper()
	s, err := zone.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Load(objects...); err != nil {
		t.Fatal(err)
	}
	return s
}

// ask sends a question through the wire format both ways.
func ask(t testing.TB, s *zone.Store, name string, typ uint16, size int) (*dns.Msg, zone.Outcome) {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, typ)
	raw, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var q wire.Query
	if v := q.Parse(raw); v != wire.OK {
		t.Fatalf("question %s %s: verdict %d", name, dns.Type(typ), v)
	}
	var r wire.Reply
	r.Start(&q, make([]byte, 0, 512), size)
	out := s.Answer(&q, &r)
	reply := new(dns.Msg)
	msg := r.Finish(out.Rcode, out.Flags, 1232)
	if len(msg) > size {
		t.Errorf("%s %s: %d bytes, want at most %d", name, dns.Type(typ), len(msg), size)
	}
	if err := reply.Unpack(msg); err != nil {
		t.Fatalf("%s %s: reply does not parse: %v\n%x", name, dns.Type(typ), err, msg)
	}
	return reply, out
}

// show is a section as text, sorted, one space between the fields.
func show(rrs []dns.RR) []string {
	var out []string
	for _, rr := range rrs {
		out = append(out, strings.Join(strings.Fields(rr.String()), " "))
	}
	slices.Sort(out)
	return out
}

func service(name string, ips []string, edit ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.ServiceSpec{ClusterIP: ips[0], ClusterIPs: ips,
			Ports: []corev1.ServicePort{{Name: "https", Port: 443, Protocol: corev1.ProtocolTCP}, {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}}}}
	for _, e := range edit {
		e(s)
	}
	return s
}

func headless(name string, edit ...func(*corev1.Service)) *corev1.Service {
	return service(name, []string{"None"}, edit...)
}

type endpoint struct {
	ip, host string
	notReady bool
}

func slice(svc, suffix string, eps []endpoint, ports ...discoveryv1.EndpointPort) *discoveryv1.EndpointSlice {
	es := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: svc + "-" + suffix, Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: svc}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: ports,
	}
	if len(ports) == 0 {
		es.Ports = []discoveryv1.EndpointPort{epPort("https", corev1.ProtocolTCP, 443)}
	}
	for _, e := range eps {
		a := netip.MustParseAddr(e.ip)
		if a.Is6() {
			es.AddressType = discoveryv1.AddressTypeIPv6
		}
		ready := !e.notReady
		ep := discoveryv1.Endpoint{Addresses: []string{e.ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
		if e.host != "" {
			ep.Hostname = &e.host
		}
		es.Endpoints = append(es.Endpoints, ep)
	}
	return es
}

func epPort(name string, proto corev1.Protocol, number int32) discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort{Name: &name, Protocol: &proto, Port: &number}
}

// cluster is what the tables below ask about. Its first part is what the
// specification's examples speak of.
func cluster() []runtime.Object {
	return []runtime.Object{
		service("kubernetes", []string{"10.3.0.1", "2001:db8::1"}),
		headless("headless"),
		slice("headless", "a", []endpoint{{ip: "10.3.0.100", host: "my-pet"}, {ip: "10.3.0.2", host: "my-pet-2"}, {ip: "10.3.0.3"}, {ip: "10.3.0.4", notReady: true}}),
		slice("headless", "b", []endpoint{{ip: "2001:db8::100", host: "my-pet"}}),
		service("foo", []string{""}, func(s *corev1.Service) {
			s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "www.example.com"}
		}),

		service("plain", []string{"10.3.0.20"}, func(s *corev1.Service) { s.Spec.Ports = []corev1.ServicePort{{Port: 80}} }),
		slice("plain", "a", []endpoint{{ip: "10.244.0.9"}, {ip: "10.244.0.10", host: "named"}}),
		headless("empty"),
		slice("empty", "a", []endpoint{{ip: "10.244.0.5", notReady: true}}),
		headless("early", func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }),
		slice("early", "a", []endpoint{{ip: "10.244.0.6", host: "early-0", notReady: true}}),
		headless("six"),
		slice("six", "a", []endpoint{{ip: "fd00::7"}}),
		service("address", []string{""}, func(s *corev1.Service) {
			s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "192.0.2.1"}
		}),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "bare"}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "kube-dns", Namespace: "kube-system"},
			Spec: corev1.ServiceSpec{ClusterIP: "10.3.0.10", ClusterIPs: []string{"10.3.0.10", "2001:db8::a"}}},
		slice("orphan", "a", []endpoint{{ip: "10.244.0.77"}}),
	}
}

func TestNames(t *testing.T) {
	const nx = dns.RcodeNameError
	type want struct {
		rcode         int
		answer, extra []string
	}
	ok := func(answer ...string) want { return want{answer: answer} }
	nodata := want{}
	nxdomain := want{rcode: nx}
	tests := []struct {
		name string
		typ  uint16
		want want
	}{
		// The specification's own examples, section by section. Time to live, priority and weight are the implementation's.
		// 2.2 Record for Schema Version
		{"dns-version.cluster.local.", dns.TypeTXT, ok(`dns-version.cluster.local. 28800 IN TXT "1.1.0"`)},
		// 2.3.1 A/AAAA Record
		{"kubernetes.default.svc.cluster.local.", dns.TypeA, ok("kubernetes.default.svc.cluster.local. 5 IN A 10.3.0.1")},
		{"kubernetes.default.svc.cluster.local.", dns.TypeAAAA, ok("kubernetes.default.svc.cluster.local. 5 IN AAAA 2001:db8::1")},
		// 2.3.2 SRV Records
		{"_https._tcp.kubernetes.default.svc.cluster.local.", dns.TypeSRV, want{
			answer: []string{"_https._tcp.kubernetes.default.svc.cluster.local. 5 IN SRV 0 100 443 kubernetes.default.svc.cluster.local."},
			extra: []string{"kubernetes.default.svc.cluster.local. 5 IN A 10.3.0.1",
				"kubernetes.default.svc.cluster.local. 5 IN AAAA 2001:db8::1"}}},
		// 2.3.3 PTR Record
		{"1.0.3.10.in-addr.arpa.", dns.TypePTR, ok("1.0.3.10.in-addr.arpa. 5 IN PTR kubernetes.default.svc.cluster.local.")},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.", dns.TypePTR,
			ok("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 5 IN PTR kubernetes.default.svc.cluster.local.")},
		// 2.4.1 A/AAAA Records of a headless Service
		{"headless.default.svc.cluster.local.", dns.TypeA, ok("headless.default.svc.cluster.local. 5 IN A 10.3.0.100",
			"headless.default.svc.cluster.local. 5 IN A 10.3.0.2", "headless.default.svc.cluster.local. 5 IN A 10.3.0.3")},
		{"headless.default.svc.cluster.local.", dns.TypeAAAA, ok("headless.default.svc.cluster.local. 5 IN AAAA 2001:db8::100")},
		{"my-pet.headless.default.svc.cluster.local.", dns.TypeA, ok("my-pet.headless.default.svc.cluster.local. 5 IN A 10.3.0.100")},
		{"my-pet.headless.default.svc.cluster.local.", dns.TypeAAAA, ok("my-pet.headless.default.svc.cluster.local. 5 IN AAAA 2001:db8::100")},
		{"empty.default.svc.cluster.local.", dns.TypeA, nxdomain}, // no ready endpoints
		// 2.4.2 SRV Records of a headless Service
		{"_https._tcp.headless.default.svc.cluster.local.", dns.TypeSRV, want{
			answer: []string{"_https._tcp.headless.default.svc.cluster.local. 5 IN SRV 0 100 443 10-3-0-3.headless.default.svc.cluster.local.",
				"_https._tcp.headless.default.svc.cluster.local. 5 IN SRV 0 100 443 my-pet-2.headless.default.svc.cluster.local.",
				"_https._tcp.headless.default.svc.cluster.local. 5 IN SRV 0 100 443 my-pet.headless.default.svc.cluster.local."},
			extra: []string{"10-3-0-3.headless.default.svc.cluster.local. 5 IN A 10.3.0.3",
				"my-pet-2.headless.default.svc.cluster.local. 5 IN A 10.3.0.2",
				"my-pet.headless.default.svc.cluster.local. 5 IN A 10.3.0.100",
				"my-pet.headless.default.svc.cluster.local. 5 IN AAAA 2001:db8::100"}}},
		// 2.4.3 PTR Records of a headless Service
		{"100.0.3.10.in-addr.arpa.", dns.TypePTR, ok("100.0.3.10.in-addr.arpa. 5 IN PTR my-pet.headless.default.svc.cluster.local.")},
		// 2.5 Records for External Name Services
		{"foo.default.svc.cluster.local.", dns.TypeA, ok("foo.default.svc.cluster.local. 5 IN CNAME www.example.com.")},
		// 2.6 Deprecated Records
		{"10-3-0-5.default.pod.cluster.local.", dns.TypeA, ok("10-3-0-5.default.pod.cluster.local. 5 IN A 10.3.0.5")},

		// What follows from it.
		{"KuberNetes.DEFAULT.svc.Cluster.LOCAL.", dns.TypeA, ok("KuberNetes.DEFAULT.svc.Cluster.LOCAL. 5 IN A 10.3.0.1")},
		{"kubernetes.default.svc.cluster.local.", dns.TypeMX, nodata},
		{"kubernetes.default.svc.cluster.local.", dns.TypeANY, ok("kubernetes.default.svc.cluster.local. 5 IN A 10.3.0.1",
			"kubernetes.default.svc.cluster.local. 5 IN AAAA 2001:db8::1")},
		{"plain.default.svc.cluster.local.", dns.TypeAAAA, nodata},
		{"kubernetes.other.svc.cluster.local.", dns.TypeA, nxdomain},
		{"nothing.default.svc.cluster.local.", dns.TypeA, nxdomain},
		{"a.b.c.default.svc.cluster.local.", dns.TypeA, nxdomain},
		{"a.b.c.d.default.svc.cluster.local.", dns.TypeA, nxdomain},
		{"www.example.com.default.svc.cluster.local.", dns.TypeA, nxdomain}, // the search path
		{"www.example.com.svc.cluster.local.", dns.TypeA, nxdomain},
		{"www.example.com.cluster.local.", dns.TypeA, nxdomain},
		{"orphan.default.svc.cluster.local.", dns.TypeA, nxdomain}, // slices without their Service
		// names that only lead to others
		{"cluster.local.", dns.TypeA, nodata},
		{"svc.cluster.local.", dns.TypeA, nodata},
		{"default.svc.cluster.local.", dns.TypeA, nodata},
		{"bare.svc.cluster.local.", dns.TypeA, nodata},
		{"none.svc.cluster.local.", dns.TypeA, nxdomain},
		{"_tcp.kubernetes.default.svc.cluster.local.", dns.TypeSRV, nodata},
		{"_udp.kubernetes.default.svc.cluster.local.", dns.TypeA, nodata},
		{"_sctp.kubernetes.default.svc.cluster.local.", dns.TypeSRV, nxdomain},
		{"_tcp.plain.default.svc.cluster.local.", dns.TypeSRV, nxdomain}, // its port has no name
		{"dns.cluster.local.", dns.TypeA, nodata},
		{"x.dns.cluster.local.", dns.TypeA, nxdomain},
		{"dns-version.cluster.local.", dns.TypeA, nodata},
		{"x.dns-version.cluster.local.", dns.TypeTXT, nxdomain},
		// ports
		{"_https._tcp.kubernetes.default.svc.cluster.local.", dns.TypeA, nodata},
		{"_dns._udp.kubernetes.default.svc.cluster.local.", dns.TypeSRV, want{
			answer: []string{"_dns._udp.kubernetes.default.svc.cluster.local. 5 IN SRV 0 100 53 kubernetes.default.svc.cluster.local."},
			extra: []string{"kubernetes.default.svc.cluster.local. 5 IN A 10.3.0.1",
				"kubernetes.default.svc.cluster.local. 5 IN AAAA 2001:db8::1"}}},
		{"_dns._tcp.kubernetes.default.svc.cluster.local.", dns.TypeSRV, nxdomain},
		{"_http._tcp.kubernetes.default.svc.cluster.local.", dns.TypeSRV, nxdomain},
		{"https.tcp.kubernetes.default.svc.cluster.local.", dns.TypeSRV, nxdomain},
		{"_https._tcp.empty.default.svc.cluster.local.", dns.TypeSRV, nxdomain},
		{"_https._tcp.foo.default.svc.cluster.local.", dns.TypeSRV, nxdomain},
		{"plain.default.svc.cluster.local.", dns.TypeSRV, want{
			answer: []string{"plain.default.svc.cluster.local. 5 IN SRV 0 100 80 plain.default.svc.cluster.local."},
			extra:  []string{"plain.default.svc.cluster.local. 5 IN A 10.3.0.20"}}},
		{"my-pet-2.headless.default.svc.cluster.local.", dns.TypeSRV, want{
			answer: []string{"my-pet-2.headless.default.svc.cluster.local. 5 IN SRV 0 100 443 my-pet-2.headless.default.svc.cluster.local."},
			extra:  []string{"my-pet-2.headless.default.svc.cluster.local. 5 IN A 10.3.0.2"}}},
		// endpoints
		{"10-3-0-3.headless.default.svc.cluster.local.", dns.TypeA, ok("10-3-0-3.headless.default.svc.cluster.local. 5 IN A 10.3.0.3")},
		{"10-3-0-3.headless.default.svc.cluster.local.", dns.TypeAAAA, nodata},
		{"10-3-0-4.headless.default.svc.cluster.local.", dns.TypeA, nxdomain},   // not ready
		{"10-3-0-100.headless.default.svc.cluster.local.", dns.TypeA, nxdomain}, // it goes by its hostname
		{"fd00--7.six.default.svc.cluster.local.", dns.TypeAAAA, ok("fd00--7.six.default.svc.cluster.local. 5 IN AAAA fd00::7")},
		{"six.default.svc.cluster.local.", dns.TypeA, nodata},
		{"named.plain.default.svc.cluster.local.", dns.TypeA, ok("named.plain.default.svc.cluster.local. 5 IN A 10.244.0.10")},
		{"early-0.early.default.svc.cluster.local.", dns.TypeA, ok("early-0.early.default.svc.cluster.local. 5 IN A 10.244.0.6")},
		{"early.default.svc.cluster.local.", dns.TypeA, ok("early.default.svc.cluster.local. 5 IN A 10.244.0.6")},
		{"x.foo.default.svc.cluster.local.", dns.TypeA, nxdomain},
		{"9.0.244.10.in-addr.arpa.", dns.TypePTR, ok("9.0.244.10.in-addr.arpa. 5 IN PTR 10-244-0-9.plain.default.svc.cluster.local.")},
		// external names
		{"foo.default.svc.cluster.local.", dns.TypeCNAME, ok("foo.default.svc.cluster.local. 5 IN CNAME www.example.com.")},
		{"address.default.svc.cluster.local.", dns.TypeA, nodata},
		// Pods
		{"fd00--5.default.pod.cluster.local.", dns.TypeAAAA, ok("fd00--5.default.pod.cluster.local. 5 IN AAAA fd00::5")},
		{"10-3-0-5.none.pod.cluster.local.", dns.TypeA, nxdomain},
		{"10-3-0-999.default.pod.cluster.local.", dns.TypeA, nxdomain},
		{"x.10-3-0-5.default.pod.cluster.local.", dns.TypeA, nxdomain},
		{"default.pod.cluster.local.", dns.TypeA, nodata},
		// the zone itself
		{"cluster.local.", dns.TypeNS, want{answer: []string{"cluster.local. 5 IN NS ns.dns.cluster.local."},
			extra: []string{"ns.dns.cluster.local. 5 IN A 10.3.0.10", "ns.dns.cluster.local. 5 IN AAAA 2001:db8::a"}}},
		{"ns.dns.cluster.local.", dns.TypeA, ok("ns.dns.cluster.local. 5 IN A 10.3.0.10")},
	}
	s := newStore(t, zone.Options{}, cluster()...)
	for _, tt := range tests {
		t.Run(tt.name+" "+dns.Type(tt.typ).String(), func(t *testing.T) {
			m, out := ask(t, s, tt.name, tt.typ, wire.MaxSize)
			if !out.Mine || m.Rcode != tt.want.rcode || !m.Authoritative || m.Truncated {
				t.Errorf("mine %v, %s, authoritative %v, truncated %v; want %s", out.Mine, dns.RcodeToString[m.Rcode], m.Authoritative, m.Truncated, dns.RcodeToString[tt.want.rcode])
			}
			if got := show(m.Answer); !slices.Equal(got, tt.want.answer) {
				t.Errorf("answer\n  %v\nwant\n  %v", strings.Join(got, "\n  "), strings.Join(tt.want.answer, "\n  "))
			}
			if got := show(m.Extra); !slices.Equal(got, tt.want.extra) {
				t.Errorf("additional\n  %v\nwant\n  %v", strings.Join(got, "\n  "), strings.Join(tt.want.extra, "\n  "))
			}
			if len(m.Answer) > 0 {
				return
			}
			// RFC 2308: who denies says for how long.
			if len(m.Ns) != 1 {
				t.Fatalf("authority %v, want an SOA", m.Ns)
			}
			soa, ok := m.Ns[0].(*dns.SOA)
			if !ok || soa.Hdr.Ttl != 5 || soa.Minttl != 5 || !strings.EqualFold(soa.Hdr.Name, "cluster.local.") {
				t.Errorf("authority %v, want cluster.local's SOA with 5 seconds", m.Ns[0])
			}
		})
	}
}

func TestSOA(t *testing.T) {
	s := newStore(t, zone.Options{Domain: "k8s.example.org", TTL: 30})
	m, _ := ask(t, s, "k8s.example.org.", dns.TypeSOA, 512)
	if len(m.Answer) != 1 {
		t.Fatalf("answer %v", m.Answer)
	}
	soa := m.Answer[0].(*dns.SOA)
	if soa.Ns != "ns.dns.k8s.example.org." || soa.Mbox != "hostmaster.k8s.example.org." || soa.Minttl != 30 || soa.Serial == 0 {
		t.Errorf("SOA %v", soa)
	}
}

// Names of others, some of them nearly the cluster's own.
func TestNotMine(t *testing.T) {
	s := newStore(t, zone.Options{}, cluster()...)
	for _, name := range []string{".", "local.", "example.com.", "kubernetes.default.svc.xcluster.local.", "cluster.local.example.com.",
		"2.0.0.192.in-addr.arpa.", "0.192.in-addr.arpa.", "01.0.3.10.in-addr.arpa.", "1.0.3.10.in-addr.arpa.example.com.", "77.0.244.10.in-addr.arpa."} {
		for _, typ := range []uint16{dns.TypeA, dns.TypePTR} {
			if m, out := ask(t, s, name, typ, 512); out.Mine {
				t.Errorf("%s %s: answered %v, want it left to others", name, dns.Type(typ), m)
			}
		}
	}
}

func TestReverseZones(t *testing.T) {
	s := newStore(t, zone.Options{ReverseZones: []netip.Prefix{netip.MustParsePrefix("10.3.0.0/16")}}, cluster()...)
	m, out := ask(t, s, "9.9.3.10.in-addr.arpa.", dns.TypePTR, 512)
	if !out.Mine || m.Rcode != dns.RcodeNameError || len(m.Ns) != 1 {
		t.Errorf("address of a range of the cluster's: %v", m)
	}
	if _, out := ask(t, s, "9.9.4.10.in-addr.arpa.", dns.TypePTR, 512); out.Mine {
		t.Error("address of another range: answered, want it left to others")
	}
}

func TestBeforeSync(t *testing.T) {
	s, err := zone.New(zone.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m, out := ask(t, s, "kubernetes.default.svc.cluster.local.", dns.TypeA, 512)
	if !out.Mine || m.Rcode != dns.RcodeServerFailure {
		t.Errorf("before anything is known: %v, want SERVFAIL, for NXDOMAIN would be believed", m)
	}
}

func TestPodNames(t *testing.T) {
	pod := func(name, ip string, phase corev1.PodPhase) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
			Status: corev1.PodStatus{Phase: phase, PodIPs: []corev1.PodIP{{IP: ip}}}}
	}
	objects := append(cluster(), pod("a", "10.244.1.7", corev1.PodRunning), pod("b", "10.244.1.8", corev1.PodSucceeded))
	for _, tt := range []struct {
		pods  zone.PodNames
		name  string
		rcode int
	}{
		{zone.PodsDisabled, "10-244-1-7.default.pod.cluster.local.", dns.RcodeNameError},
		{zone.PodsInsecure, "10-244-1-9.default.pod.cluster.local.", dns.RcodeSuccess},
		{zone.PodsVerified, "10-244-1-7.default.pod.cluster.local.", dns.RcodeSuccess},
		{zone.PodsVerified, "10-244-1-7.kube-system.pod.cluster.local.", dns.RcodeNameError},
		{zone.PodsVerified, "10-244-1-8.default.pod.cluster.local.", dns.RcodeNameError},
		{zone.PodsVerified, "10-244-1-9.default.pod.cluster.local.", dns.RcodeNameError},
	} {
		s := newStore(t, zone.Options{Pods: tt.pods}, objects...)
		if m, _ := ask(t, s, tt.name, dns.TypeA, 512); m.Rcode != tt.rcode || (len(m.Answer) == 1) != (tt.rcode == 0) {
			t.Errorf("%s: %s: %v", tt.pods, tt.name, m)
		}
	}
	if _, err := zone.New(zone.Options{Pods: "sometimes", Domain: "a..b", NameServer: "x"}); err == nil {
		t.Error("nonsense options are accepted")
	}
}

// Every change is in the answers at once, and nothing of what is gone stays.
func TestChanges(t *testing.T) {
	s := newStore(t, zone.Options{})
	count := func(name string, typ uint16) int {
		m, _ := ask(t, s, name, typ, wire.MaxSize)
		return len(m.Answer)
	}
	want := func(step, name string, typ uint16, n int) {
		t.Helper()
		if got := count(name, typ); got != n {
			t.Errorf("%s: %s %s: %d records, want %d", step, name, dns.Type(typ), got, n)
		}
	}
	const name, ptr = "db.default.svc.cluster.local.", "1.0.244.10.in-addr.arpa."
	a, b := slice("db", "a", []endpoint{{ip: "10.244.0.1"}, {ip: "10.244.0.2"}}), slice("db", "b", []endpoint{{ip: "10.244.0.1", host: "db-0"}})
	s.Load(a)
	want("slice before its Service", name, dns.TypeA, 0)
	s.Load(headless("db"))
	want("Service", name, dns.TypeA, 2)
	want("Service", ptr, dns.TypePTR, 1)
	s.Load(b)
	want("same address in a second slice", name, dns.TypeA, 2)
	want("same address in a second slice", "db-0."+name, dns.TypeA, 1)
	s.Unload(a)
	want("first slice gone", name, dns.TypeA, 1)
	want("first slice gone", ptr, dns.TypePTR, 1)
	moved := slice("db", "b", []endpoint{{ip: "10.244.0.1"}})
	moved.Labels[discoveryv1.LabelServiceName] = "other"
	s.Load(moved)
	want("slice given to another Service", name, dns.TypeA, 0)
	s.Load(service("db", []string{"10.3.0.30"}))
	want("no longer headless", name, dns.TypeA, 1)
	want("no longer headless", "30.0.3.10.in-addr.arpa.", dns.TypePTR, 1)
	s.Load(service("db", []string{"10.3.0.31"}))
	want("another ClusterIP", "30.0.3.10.in-addr.arpa.", dns.TypePTR, 0)
	want("another ClusterIP", "31.0.3.10.in-addr.arpa.", dns.TypePTR, 1)
	s.Unload(service("db", []string{"10.3.0.31"}), moved)
	want("gone", name, dns.TypeA, 0)
	want("gone", "31.0.3.10.in-addr.arpa.", dns.TypePTR, 0)
	if m, _ := ask(t, s, "default.svc.cluster.local.", dns.TypeA, 512); m.Rcode != dns.RcodeNameError {
		t.Errorf("namespace without anything: %s", dns.RcodeToString[m.Rcode])
	}
	if st := s.Stats(); st != (zone.Stats{}) {
		t.Errorf("left over: %+v", st)
	}
}

// Answers larger than the asker takes are cut, marked, and whole over TCP.
func TestTruncation(t *testing.T) {
	const n = 3000
	var objects []runtime.Object
	objects = append(objects, headless("big"))
	for i := range n / 100 {
		var eps []endpoint
		for j := range 100 {
			eps = append(eps, endpoint{ip: fmt.Sprintf("10.%d.%d.%d", 1+i, j, i)})
		}
		objects = append(objects, slice("big", fmt.Sprint(i), eps))
	}
	s := newStore(t, zone.Options{}, objects...)
	m, _ := ask(t, s, "big.default.svc.cluster.local.", dns.TypeA, 512)
	if !m.Truncated || len(m.Answer) < 25 {
		t.Errorf("in 512 bytes: truncated %v, %d records", m.Truncated, len(m.Answer))
	}
	m, _ = ask(t, s, "big.default.svc.cluster.local.", dns.TypeA, wire.MaxSize)
	if m.Truncated || len(m.Answer) != n {
		t.Errorf("over TCP: truncated %v, %d records, want %d", m.Truncated, len(m.Answer), n)
	}
	m, _ = ask(t, s, "_https._tcp.big.default.svc.cluster.local.", dns.TypeSRV, wire.MaxSize)
	if !m.Truncated || len(m.Answer) < 500 {
		t.Errorf("SRV of %d endpoints: truncated %v, %d records", n, m.Truncated, len(m.Answer))
	}
	// Everyone who takes the first address gets another one.
	first := map[string]bool{}
	for range 50 {
		m, _ := ask(t, s, "big.default.svc.cluster.local.", dns.TypeA, 512)
		first[m.Answer[0].String()] = true
	}
	if len(first) < 10 {
		t.Errorf("50 answers begin with %d different addresses", len(first))
	}
}

func TestAnswerAllocatesNothing(t *testing.T) {
	s := newStore(t, zone.Options{}, cluster()...)
	for _, name := range []string{"kubernetes.default.svc.cluster.local.", "headless.default.svc.cluster.local.", "www.example.com.default.svc.cluster.local."} {
		m := new(dns.Msg)
		m.SetQuestion(name, dns.TypeA)
		raw, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		var q wire.Query
		var r wire.Reply
		buf := make([]byte, 0, 1232)
		if n := testing.AllocsPerRun(100, func() {
			q.Parse(raw)
			r.Start(&q, buf, 512)
			out := s.Answer(&q, &r)
			r.Finish(out.Rcode, out.Flags, 1232)
		}); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// FuzzAnswer: whatever is asked, what is answered parses, keeps to its size and
// is about the question.
func FuzzAnswer(f *testing.F) {
	s := newStore(f, zone.Options{ReverseZones: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, cluster()...)
	for _, name := range []string{"kubernetes.default.svc.cluster.local.", "_https._tcp.headless.default.svc.cluster.local.", "foo.default.svc.cluster.local.",
		"10-3-0-5.default.pod.cluster.local.", "1.0.3.10.in-addr.arpa.", "cluster.local.", "a.b.c.d.e.svc.cluster.local."} {
		for _, typ := range []uint16{dns.TypeA, dns.TypeSRV, dns.TypePTR, dns.TypeANY, dns.TypeNS} {
			m := new(dns.Msg)
			m.SetQuestion(name, typ)
			m.SetEdns0(600, true)
			raw, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(raw)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var q wire.Query
		if q.Parse(raw) != wire.OK {
			return
		}
		size := q.ReplySize(1232)
		var r wire.Reply
		r.Start(&q, nil, size)
		out := s.Answer(&q, &r)
		msg := r.Finish(out.Rcode, out.Flags, 1232)
		if len(msg) > size {
			t.Fatalf("%d bytes, want at most %d", len(msg), size)
		}
		m := new(dns.Msg)
		if err := m.Unpack(msg); err != nil {
			t.Fatalf("%v\n%x", err, msg)
		}
		if m.Id != q.ID() || m.Question[0].Name != wire.Text(q.RawName()) {
			t.Errorf("%v to %q", m, q.Name)
		}
	})
}
