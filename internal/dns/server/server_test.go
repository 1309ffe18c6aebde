package server_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/dns/server"
	"fairway.dev/fairway/internal/dns/zone"
	"fairway.dev/fairway/internal/netns"
)

// objects are the cluster that these tests ask about: a Service, a stateful
// set's Service with many endpoints, and names for other names.
func objects() []runtime.Object {
	svc := func(name string, spec corev1.ServiceSpec) runtime.Object {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: spec}
	}
	external := func(name, to string) runtime.Object {
		return svc(name, corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: to})
	}
	name, proto, port, addr := "http", corev1.ProtocolTCP, int32(8080), "10.244.0.%d"
	es := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4,
		ObjectMeta: metav1.ObjectMeta{Name: "db-a", Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: "db"}},
		Ports:      []discoveryv1.EndpointPort{{Name: &name, Protocol: &proto, Port: &port}}}
	for i := range 100 {
		host := fmt.Sprintf("db-%d", i)
		es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf(addr, i+1)}, Hostname: &host})
	}
	return []runtime.Object{
		svc("web", corev1.ServiceSpec{ClusterIP: "10.96.0.20", ClusterIPs: []string{"10.96.0.20", "fd00:10:96::20"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}),
		svc("db", corev1.ServiceSpec{ClusterIP: "None", ClusterIPs: []string{"None"}}), es,
		external("outside", "www.example.org"),
		external("inside", "web.default.svc.cluster.local"),
		external("twice", "outside.default.svc.cluster.local"),
		external("circle", "circle.default.svc.cluster.local"),
		external("broken", "broken.example.org"),
	}
}

// upstream answers www.example.org; "broken." fails, "slow." is never answered.
func upstream(w dns.ResponseWriter, m *dns.Msg) {
	r := new(dns.Msg)
	r.SetReply(m)
	q := m.Question[0]
	switch name := strings.ToLower(q.Name); {
	case strings.HasPrefix(name, "slow."):
		return
	case strings.HasPrefix(name, "broken."):
		r.Rcode = dns.RcodeServerFailure
	case name == "www.example.org." && q.Qtype == dns.TypeA:
		rr, _ := dns.NewRR("www.example.org. 60 IN A 192.0.2.80")
		r.Answer = []dns.RR{rr}
	case name == "www.example.org.":
		rr, _ := dns.NewRR("example.org. 60 IN SOA ns. mb. 1 2 3 4 60")
		r.Ns = []dns.RR{rr}
	default:
		r.Rcode = dns.RcodeNameError
		rr, _ := dns.NewRR(". 60 IN SOA ns. mb. 1 2 3 4 60")
		r.Ns = []dns.RR{rr}
	}
	w.WriteMsg(r)
}

// serve runs a server with the cluster's names and an upstream, both in a
// network namespace (nil: loopback of this process), until the test ends.
func serve(t *testing.T, ns *netns.NS, addrs []netip.AddrPort, edits ...func(*server.Options)) *server.Server {
	t.Helper()
	store, err := zone.New(zone.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Load(objects()...); err != nil {
		t.Fatal(err)
	}
	var pc net.PacketConn
	dial := new(net.Dialer).DialContext
	if ns == nil {
		pc, err = net.ListenPacket("udp", "127.0.0.1:0")
	} else {
		pc, err = ns.ListenPacket(context.Background(), "udp", "127.0.0.1:0")
		dial = ns.DialContext
	}
	if err != nil {
		t.Fatal(err)
	}
	up := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(upstream)}
	go up.ActivateAndServe()
	t.Cleanup(func() { up.Shutdown() })
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	resolver, err := forward.New(forward.Options{Upstreams: []netip.AddrPort{pc.LocalAddr().(*net.UDPAddr).AddrPort()}, Dial: dial})
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { resolver.Run(ctx) })
	o := server.Options{Addrs: addrs, NetNS: ns, Store: store, Resolver: resolver}
	for _, edit := range edits {
		edit(&o)
	}
	s, err := server.New(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { s.Run(ctx) })
	return s
}

var loopback = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}

func exchange(t *testing.T, s *server.Server, network string, m *dns.Msg) *dns.Msg {
	t.Helper()
	addr := s.UDPAddr()
	if network == "tcp" {
		addr = s.TCPAddr()
	}
	c := &dns.Client{Net: network, Timeout: 20 * time.Second}
	r, _, err := c.Exchange(m, addr.String())
	if err != nil {
		t.Fatalf("%s over %s: %v", m.Question[0].Name, network, err)
	}
	return r
}

func question(name string, typ uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, typ)
	return m
}

func TestBothProtocols(t *testing.T) {
	s := serve(t, nil, loopback)
	for _, network := range []string{"udp", "tcp"} {
		for _, tt := range []struct {
			name   string
			typ    uint16
			rcode  int
			answer string
		}{
			{"Web.Default.svc.cluster.local.", dns.TypeA, 0, "Web.Default.svc.cluster.local. 5 IN A 10.96.0.20"},
			{"nope.default.svc.cluster.local.", dns.TypeA, dns.RcodeNameError, ""},
			{"www.example.org.", dns.TypeA, 0, "www.example.org. 60 IN A 192.0.2.80"},
			{"www.example.org.", dns.TypeAAAA, 0, ""},
			{"other.example.org.", dns.TypeA, dns.RcodeNameError, ""},
			{"broken.example.org.", dns.TypeA, dns.RcodeServerFailure, ""},
			{"outside.default.svc.cluster.local.", dns.TypeA, 0,
				"outside.default.svc.cluster.local. 5 IN CNAME www.example.org.|www.example.org. 60 IN A 192.0.2.80"},
			{"outside.default.svc.cluster.local.", dns.TypeAAAA, 0, "outside.default.svc.cluster.local. 5 IN CNAME www.example.org."},
			{"outside.default.svc.cluster.local.", dns.TypeCNAME, 0, "outside.default.svc.cluster.local. 5 IN CNAME www.example.org."},
			{"INSIDE.default.svc.cluster.local.", dns.TypeAAAA, 0,
				"INSIDE.default.svc.cluster.local. 5 IN CNAME web.default.svc.cluster.local.|web.default.svc.cluster.local. 5 IN AAAA fd00:10:96::20"},
			{"twice.default.svc.cluster.local.", dns.TypeA, 0, "twice.default.svc.cluster.local. 5 IN CNAME outside.default.svc.cluster.local.|" +
				"outside.default.svc.cluster.local. 5 IN CNAME www.example.org.|www.example.org. 60 IN A 192.0.2.80"},
			{"broken.default.svc.cluster.local.", dns.TypeA, dns.RcodeServerFailure, "broken.default.svc.cluster.local. 5 IN CNAME broken.example.org."},
		} {
			m := question(tt.name, tt.typ)
			m.SetEdns0(1232, false)
			r := exchange(t, s, network, m)
			var got []string
			for _, rr := range r.Answer {
				if rr.Header().Ttl > 55 { // it runs down
					rr.Header().Ttl = 60
				}
				got = append(got, strings.Join(strings.Fields(rr.String()), " "))
			}
			if r.Rcode != tt.rcode || strings.Join(got, "|") != tt.answer || r.Question[0].Name != tt.name || !r.RecursionAvailable {
				t.Errorf("%s %s over %s: %s, recursion %v,\n  %s\nwant %s,\n  %s", tt.name, dns.Type(tt.typ), network,
					dns.RcodeToString[r.Rcode], r.RecursionAvailable, strings.Join(got, "\n  "), dns.RcodeToString[tt.rcode], strings.ReplaceAll(tt.answer, "|", "\n  "))
			}
		}
	}
	if r := exchange(t, s, "udp", question("circle.default.svc.cluster.local.", dns.TypeA)); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("a name for itself: %v", r)
	}
}

func TestRefused(t *testing.T) {
	s := serve(t, nil, loopback)
	chaos := question("version.bind.", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	norec := question("uncached.example.org.", dns.TypeA)
	norec.RecursionDesired = false
	notify := question("cluster.local.", dns.TypeSOA)
	notify.Opcode = dns.OpcodeNotify
	later := question("web.default.svc.cluster.local.", dns.TypeA)
	later.SetEdns0(1232, false).IsEdns0().SetVersion(3)
	for what, tt := range map[string]struct {
		m     *dns.Msg
		rcode int
	}{
		"another class":        {chaos, dns.RcodeRefused},
		"zone transfer":        {question("cluster.local.", dns.TypeAXFR), dns.RcodeRefused},
		"no recursion desired": {norec, dns.RcodeRefused},
		"notify":               {notify, dns.RcodeNotImplemented},
		"later EDNS":           {later, dns.RcodeBadVers},
	} {
		if r := exchange(t, s, "udp", tt.m); r.Rcode != tt.rcode {
			t.Errorf("%s: %s, want %s", what, dns.RcodeToString[r.Rcode], dns.RcodeToString[tt.rcode])
		}
	}
	norec = question("web.default.svc.cluster.local.", dns.TypeA)
	norec.RecursionDesired = false
	if r := exchange(t, s, "udp", norec); len(r.Answer) != 1 || r.RecursionDesired {
		t.Errorf("cluster name without recursion: %v", r)
	}
}

func TestTruncated(t *testing.T) {
	s := serve(t, nil, loopback)
	const name = "db.default.svc.cluster.local."
	plain := exchange(t, s, "udp", question(name, dns.TypeA))
	edns := question(name, dns.TypeA)
	edns.SetEdns0(4096, false)
	more := exchange(t, s, "udp", edns)
	all := exchange(t, s, "tcp", question(name, dns.TypeA))
	if !plain.Truncated || !more.Truncated || all.Truncated || len(all.Answer) != 100 || len(plain.Answer) >= len(more.Answer) {
		t.Errorf("plain UDP %d (cut %v), with EDNS %d (cut %v), TCP %d (cut %v) of 100 addresses",
			len(plain.Answer), plain.Truncated, len(more.Answer), more.Truncated, len(all.Answer), all.Truncated)
	}
	if srv := exchange(t, s, "tcp", question("_http._tcp."+name, dns.TypeSRV)); len(srv.Answer) != 100 || len(srv.Extra) != 100 {
		t.Errorf("SRV over TCP: %d records and %d addresses", len(srv.Answer), len(srv.Extra))
	}
}

// Answers that take waiting do not hold up the others on their connection.
func TestPipeline(t *testing.T) {
	s := serve(t, nil, loopback)
	c, err := dns.Dial("tcp", s.TCPAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	slow, quick := question("slow.example.org.", dns.TypeA), question("web.default.svc.cluster.local.", dns.TypeA)
	for _, m := range []*dns.Msg{slow, quick} {
		if err := c.WriteMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []*dns.Msg{quick, slow} {
		r, err := c.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		if r.Id != want.Id {
			t.Errorf("answer to %s, want that to %s first", r.Question[0].Name, want.Question[0].Name)
		}
	}
}

// Junk neither stops the server nor is answered.
func TestJunk(t *testing.T) {
	s := serve(t, nil, loopback)
	c, err := net.Dial("udp", s.UDPAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for n := range 300 {
		c.Write(make([]byte, n*10))
	}
	r := question("web.default.svc.cluster.local.", dns.TypeA)
	r.Response = true
	raw, _ := r.Pack()
	c.Write(raw)
	tc, err := net.Dial("tcp", s.TCPAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	tc.Write([]byte{0xff, 0xff, 1, 2, 3})
	tc.Close()
	if r := exchange(t, s, "udp", question("web.default.svc.cluster.local.", dns.TypeA)); len(r.Answer) != 1 {
		t.Errorf("after junk: %v", r)
	}
}

func TestLimitPerClient(t *testing.T) {
	s := serve(t, nil, loopback, func(o *server.Options) { o.PerClient = 2 })
	c, err := dns.Dial("udp", s.UDPAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	for i := range 4 {
		c.WriteMsg(question(fmt.Sprintf("slow.%d.example.org.", i), dns.TypeA))
	}
	var codes []int
	for range 4 {
		r, err := c.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		codes = append(codes, r.Rcode)
	}
	slices.Sort(codes)
	if want := []int{dns.RcodeServerFailure, dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeRefused}; !slices.Equal(codes, want) {
		t.Errorf("response codes %v, want %v", codes, want)
	}
}

func TestMetrics(t *testing.T) {
	s := serve(t, nil, loopback)
	exchange(t, s, "udp", question("web.default.svc.cluster.local.", dns.TypeA))
	exchange(t, s, "tcp", question("www.example.org.", dns.TypeA))
	exchange(t, s, "udp", question("www.example.org.", dns.TypeA))
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(s)
	want := map[string]float64{
		`coredns_dns_requests_total udp 1 A cluster.local.`:       1,
		`coredns_dns_requests_total tcp 1 A .`:                    1,
		`coredns_dns_requests_total udp 1 A .`:                    1,
		`coredns_dns_responses_total NOERROR kubernetes`:          1,
		`coredns_dns_responses_total NOERROR forward`:             1,
		`coredns_dns_responses_total NOERROR cache`:               1,
		`coredns_dns_request_duration_seconds cluster.local.`:     1,
		`coredns_dns_request_duration_seconds .`:                  2,
		`coredns_dns_response_size_bytes udp cluster.local.`:      1,
		`coredns_dns_request_size_bytes tcp .`:                    1,
		`coredns_dns_responses_total SERVFAIL forward (not here)`: 0,
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			l := map[string]string{}
			for _, p := range m.GetLabel() {
				l[p.GetName()] = p.GetValue()
			}
			value := m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			var parts []string
			for _, name := range []string{"proto", "family", "type", "rcode", "plugin"} {
				if l[name] != "" {
					parts = append(parts, l[name])
				}
			}
			if _, ok := l["rcode"]; !ok {
				parts = append(parts, l["zone"])
			}
			got[f.GetName()+" "+strings.Join(parts, " ")] += value
		}
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: %v, want %v", k, got[k], v)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
}

func TestBadOptions(t *testing.T) {
	store, _ := zone.New(zone.Options{})
	for what, o := range map[string]server.Options{
		"no store":     {Addrs: loopback},
		"no address":   {Store: store},
		"size":         {Store: store, Addrs: loopback, MaxUDPSize: 100},
		"not here":     {Store: store, Addrs: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}},
		"large a size": {Store: store, Addrs: loopback, MaxUDPSize: 9000},
	} {
		if s, err := server.New(context.Background(), o); err == nil {
			s.Close()
			t.Errorf("%s: accepted", what)
		}
	}
}
