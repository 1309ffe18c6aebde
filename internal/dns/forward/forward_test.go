package forward_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/dns/wire"
)

// upstream is a DNS server on loopback that answers as the test says.
type upstream struct {
	addr   netip.AddrPort
	asked  atomic.Int64
	mu     sync.Mutex
	answer func(w dns.ResponseWriter, m *dns.Msg)
}

func newUpstream(t *testing.T, answer func(w dns.ResponseWriter, m *dns.Msg)) *upstream {
	t.Helper()
	u := &upstream{answer: answer}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", pc.LocalAddr().String())
	if err != nil {
		t.Skipf("the TCP port of %v is taken: %v", pc.LocalAddr(), err)
	}
	u.addr = pc.LocalAddr().(*net.UDPAddr).AddrPort()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		if m.Question[0].Qtype == dns.TypeHINFO { // the resolver looks for loops
			reply(w, m)
			return
		}
		u.asked.Add(1)
		u.mu.Lock()
		f := u.answer
		u.mu.Unlock()
		f(w, m)
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: l, Handler: handler}} {
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
	}
	return u
}

func (u *upstream) become(answer func(w dns.ResponseWriter, m *dns.Msg)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.answer = answer
}

func silent(dns.ResponseWriter, *dns.Msg) {}

func reply(w dns.ResponseWriter, m *dns.Msg, rrs ...string) {
	r := new(dns.Msg)
	r.SetReply(m)
	for _, s := range rrs {
		rr, err := dns.NewRR(s)
		if err != nil {
			panic(err)
		}
		if rr.Header().Rrtype == dns.TypeSOA {
			r.Ns = append(r.Ns, rr)
		} else {
			r.Answer = append(r.Answer, rr)
		}
	}
	w.WriteMsg(r)
}

func with(rrs ...string) func(dns.ResponseWriter, *dns.Msg) {
	return func(w dns.ResponseWriter, m *dns.Msg) { reply(w, m, rrs...) }
}

func rcode(code int, rrs ...string) func(dns.ResponseWriter, *dns.Msg) {
	return func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg)
		r.SetRcode(m, code)
		for _, s := range rrs {
			rr, _ := dns.NewRR(s)
			r.Ns = append(r.Ns, rr)
		}
		w.WriteMsg(r)
	}
}

// start runs a resolver until the test ends.
func start(t *testing.T, o forward.Options) *forward.Resolver {
	t.Helper()
	r, err := forward.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { r.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

func query(t testing.TB, name string, typ uint16, edit ...func(*dns.Msg)) *wire.Query {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, typ)
	for _, e := range edit {
		e(m)
	}
	raw, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	q := &wire.Query{}
	if q.Parse(raw) != wire.OK {
		t.Fatal("question does not parse")
	}
	return q
}

// ask resolves and reads what an asker would be told.
func ask(t testing.TB, r *forward.Resolver, q *wire.Query) (*dns.Msg, error) {
	t.Helper()
	a, err := r.Resolve(context.Background(), q)
	if err != nil {
		return nil, err
	}
	m := new(dns.Msg)
	if err := m.Unpack(a.Write(q, nil, wire.MaxSize, 1232, time.Now())); err != nil {
		t.Fatalf("answer does not parse: %v", err)
	}
	return m, nil
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("did not come true: %s", what)
}

// With every upstream down, what is known goes on, what is not fails fast.
func TestUpstreamDown(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, with("known.example.org. 1 IN A 192.0.2.1"))
	r := start(t, forward.Options{Upstreams: []netip.AddrPort{u.addr}})
	known := query(t, "known.example.org.", dns.TypeA)
	if _, err := ask(t, r, known); err != nil {
		t.Fatal(err)
	}
	u.become(silent)
	for i := range 4 {
		begin := time.Now()
		_, err := ask(t, r, query(t, "unknown"+string(rune('a'+i))+".example.org.", dns.TypeA))
		if !errors.Is(err, forward.ErrNoUpstream) || time.Since(begin) > 2*time.Second {
			t.Errorf("unknown name: %v after %v, want failure within 2s", err, time.Since(begin))
		}
	}
	eventually(t, "the answer is past its end", func() bool { return r.Lookup(known, time.Now()) == nil })
	begin := time.Now()
	m, err := ask(t, r, known)
	if err != nil || len(m.Answer) != 1 || m.Answer[0].Header().Ttl != 30 {
		t.Fatalf("known name: %v, %v", m, err)
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("known name took %v", d)
	}
	// And when it comes back, all is as before.
	u.become(with("known.example.org. 60 IN A 192.0.2.2"))
	eventually(t, "the new address is told", func() bool {
		m, err := ask(t, r, known)
		return err == nil && strings.Contains(m.Answer[0].String(), "192.0.2.2")
	})
}

// The next upstream answers when one is silent, fails, or refuses.
func TestNextUpstream(t *testing.T) {
	t.Parallel()
	for what, first := range map[string]func(dns.ResponseWriter, *dns.Msg){
		"silent": silent, "failing": rcode(dns.RcodeServerFailure), "refusing": rcode(dns.RcodeRefused),
	} {
		t.Run(what, func(t *testing.T) {
			a, b := newUpstream(t, first), newUpstream(t, with("www.example.org. 60 IN A 192.0.2.2"))
			r := start(t, forward.Options{Upstreams: []netip.AddrPort{a.addr, b.addr}})
			m, err := ask(t, r, query(t, "www.example.org.", dns.TypeA))
			if err != nil || len(m.Answer) != 1 {
				t.Errorf("%v, %v", m, err)
			}
		})
	}
}

func TestOldUpstreamWithoutEDNS(t *testing.T) {
	for _, code := range []int{dns.RcodeFormatError, dns.RcodeNotImplemented} {
		u := newUpstream(t, func(w dns.ResponseWriter, m *dns.Msg) {
			if m.IsEdns0() != nil {
				rcode(code)(w, m)
				return
			}
			reply(w, m, "www.example.org. 60 IN A 192.0.2.1")
		})
		r := start(t, forward.Options{Upstreams: []netip.AddrPort{u.addr}})
		if m, err := ask(t, r, query(t, "www.example.org.", dns.TypeA)); err != nil || len(m.Answer) != 1 {
			t.Errorf("%s: %v, %v", dns.RcodeToString[code], m, err)
		}
	}
}

// Forged datagrams do not end the wait for the true reply.
func TestForgery(t *testing.T) {
	u := newUpstream(t, func(w dns.ResponseWriter, m *dns.Msg) {
		forged := m.Copy()
		forged.Id++
		reply(w, forged, "www.example.org. 60 IN A 203.0.113.1")
		forged = m.Copy()
		forged.Question[0].Name = "other.example.org."
		reply(w, forged, "www.example.org. 60 IN A 203.0.113.1")
		w.Write([]byte("nonsense"))
		reply(w, m, "www.example.org. 60 IN A 192.0.2.1")
	})
	r := start(t, forward.Options{Upstreams: []netip.AddrPort{u.addr}})
	m, err := ask(t, r, query(t, "www.example.org.", dns.TypeA))
	if err != nil || !strings.Contains(m.Answer[0].String(), "192.0.2.1") {
		t.Errorf("%v, %v", m, err)
	}
}

func metric(t *testing.T, c prometheus.Collector, name string) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(c)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func TestTooManyAtOnce(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, silent)
	r := start(t, forward.Options{Upstreams: []netip.AddrPort{u.addr}, MaxConcurrent: 1})
	first := make(chan error, 1)
	go func() {
		_, err := ask(t, r, query(t, "a.example.org.", dns.TypeA))
		first <- err
	}()
	eventually(t, "a question is under way", func() bool { return u.asked.Load() > 0 })
	if _, err := ask(t, r, query(t, "b.example.org.", dns.TypeA)); !errors.Is(err, forward.ErrBusy) && !errors.Is(err, forward.ErrNoUpstream) {
		t.Errorf("%v, want %v", err, forward.ErrBusy)
	}
	<-first
}

func TestStubDomains(t *testing.T) {
	all := newUpstream(t, with("x. 60 IN A 192.0.2.1"))
	corp := newUpstream(t, with("x. 60 IN A 192.0.2.2"))
	deep := newUpstream(t, with("x. 60 IN A 192.0.2.3"))
	r := start(t, forward.Options{Upstreams: []netip.AddrPort{all.addr},
		Stubs: map[string][]netip.AddrPort{"Corp.Example": {corp.addr}, "deep.corp.example.": {deep.addr}}})
	for name, u := range map[string]*upstream{"corp.example.": corp, "www.CORP.example.": corp, "a.deep.corp.example.": deep, "xcorp.example.": all, "example.": all, ".": all} {
		before := u.asked.Load()
		if _, err := ask(t, r, query(t, name, dns.TypeA)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if u.asked.Load() != before+1 {
			t.Errorf("%s: another server than meant was asked", name)
		}
	}
}

// An upstream that sends questions round to this server is found out.
func TestLoop(t *testing.T) {
	t.Parallel()
	var r atomic.Pointer[forward.Resolver]
	u := newUpstream(t, silent)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		raw, _ := m.Pack()
		var q wire.Query
		if r := r.Load(); r != nil && q.Parse(raw) == wire.OK {
			r.SawProbe(&q)
		}
		rcode(dns.RcodeRefused)(w, m)
	})}
	go s.ActivateAndServe()
	t.Cleanup(func() { s.Shutdown() })
	loop := pc.LocalAddr().(*net.UDPAddr).AddrPort()
	res, err := forward.New(forward.Options{Upstreams: []netip.AddrPort{loop}})
	if err != nil {
		t.Fatal(err)
	}
	r.Store(res)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { res.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	eventually(t, "the looping upstream is not asked any more", func() bool {
		_, err := ask(t, res, query(t, "www.example.org.", dns.TypeA))
		return errors.Is(err, forward.ErrNoUpstream)
	})
	if u.asked.Load() != 0 {
		t.Error("somebody else was asked")
	}
	if res.SawProbe(query(t, "a.b.", dns.TypeHINFO)) {
		t.Error("any HINFO question is taken for a probe")
	}
}

func TestSelfIsNoUpstream(t *testing.T) {
	u := newUpstream(t, with())
	r := start(t, forward.Options{Upstreams: []netip.AddrPort{u.addr}, Self: []netip.Addr{u.addr.Addr()}})
	if _, err := ask(t, r, query(t, "www.example.org.", dns.TypeA)); !errors.Is(err, forward.ErrNoUpstream) || u.asked.Load() > 0 {
		t.Errorf("asked itself: %v", err)
	}
}

// resolv.conf is read, and read again when it changes.
func TestResolvConf(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	var dialed sync.Map
	dial := func(_ context.Context, network, address string) (net.Conn, error) {
		dialed.Store(address, true)
		return nil, errors.New("no network in this test")
	}
	var log buffer
	r := start(t, forward.Options{ResolvConf: path, Dial: dial, Logger: slog.New(slog.NewTextHandler(&log, nil))}) // not there: no reason not to start
	if _, err := ask(t, r, query(t, "a.example.org.", dns.TypeA)); !errors.Is(err, forward.ErrNoUpstream) {
		t.Errorf("without upstreams: %v", err)
	}
	os.WriteFile(path, []byte("# comment\nsearch example.org\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nnameserver nonsense\nnameserver 192.0.2.53\n"), 0o644)
	eventually(t, "the file's servers are asked", func() bool {
		ask(t, r, query(t, "b.example.org.", dns.TypeA))
		_, four := dialed.Load("192.0.2.53:53")
		_, six := dialed.Load("[2001:db8::53]:53")
		return four && six
	})
	// A file that is being written has nothing in it for a moment.
	os.WriteFile(path, nil, 0o644)
	eventually(t, "the empty file is noticed", func() bool { return strings.Contains(log.String(), "no nameserver in it; upstreams stay") })
	dialed.Clear()
	ask(t, r, query(t, "c.example.org.", dns.TypeA))
	if _, ok := dialed.Load("192.0.2.53:53"); !ok {
		t.Error("the servers are forgotten over an empty file")
	}
	os.WriteFile(path, []byte("nameserver fe80::1%lo\noptions ndots:5 rotate edns0 trust-ad\n"), 0o644)
	eventually(t, "the file's next server is asked, by its link", func() bool {
		ask(t, r, query(t, "d.example.org.", dns.TypeA))
		_, ok := dialed.Load("[fe80::1%lo]:53")
		return ok
	})
}

// buffer is a log.
type buffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// FuzzUpstreamReply: an upstream may send what it likes.
func FuzzUpstreamReply(f *testing.F) {
	m := new(dns.Msg)
	m.SetQuestion("www.example.org.", dns.TypeA)
	m.Response = true
	rr, _ := dns.NewRR("www.example.org. 60 IN CNAME x.example.org.")
	soa, _ := dns.NewRR("example.org. 60 IN SOA a. b. 1 2 3 4 5")
	m.Answer, m.Ns = []dns.RR{rr}, []dns.RR{soa}
	raw, _ := m.Pack()
	f.Add(raw)
	f.Add([]byte("0000\x00\x00000000\x00\x00\x06000000\x00\x00")) // an SOA without data
	f.Fuzz(func(t *testing.T, raw []byte) {
		m := new(dns.Msg)
		if m.Unpack(raw) != nil {
			return
		}
		q := query(t, "www.example.org.", dns.TypeA, func(m *dns.Msg) { m.SetEdns0(1232, true) })
		a, err := forward.NewAnswerForTest(q, m)
		if err != nil {
			return
		}
		for _, size := range []int{512, wire.MaxSize} {
			b := a.Write(q, nil, size, 1232, time.Now())
			if len(b) > size {
				t.Fatalf("%d bytes, want at most %d", len(b), size)
			}
			if err := new(dns.Msg).Unpack(b); err != nil {
				t.Fatalf("told %x: %v", b, err)
			}
		}
		a.Msg(time.Now())
	})
}
