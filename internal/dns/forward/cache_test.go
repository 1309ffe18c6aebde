package forward_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/dns/wire"
)

func TestCache(t *testing.T) {
	t.Parallel()
	const name = "www.example.org."
	tests := []struct {
		what   string
		answer func(dns.ResponseWriter, *dns.Msg)
		rcode  int
		asked  int64 // upstream, for two questions
	}{
		{"positive", with(name + " 60 IN A 192.0.2.1"), 0, 1},
		{"no time to live", with(name + " 0 IN A 192.0.2.1"), 0, 2},
		{"no data", with("example.org. 60 IN SOA ns. mb. 1 2 3 4 60"), 0, 1},
		{"no data, minimum 0", with("example.org. 60 IN SOA ns. mb. 1 2 3 4 0"), 0, 2},
		{"no data, no SOA", with(), 0, 2},
		{"no name", rcode(dns.RcodeNameError, "example.org. 60 IN SOA ns. mb. 1 2 3 4 60"), dns.RcodeNameError, 1},
		{"no name, no SOA", rcode(dns.RcodeNameError), dns.RcodeNameError, 2},
		{"failure", rcode(dns.RcodeServerFailure), dns.RcodeServerFailure, 1},
	}
	for _, tt := range tests {
		t.Run(tt.what, func(t *testing.T) {
			u := newUpstream(t, tt.answer)
			r := start(t, forward.Options{Upstreams: []netip.AddrPort{u.addr}})
			for range 2 {
				m, err := ask(t, r, query(t, name, dns.TypeA))
				if err != nil {
					t.Fatal(err)
				}
				if m.Rcode != tt.rcode {
					t.Errorf("%s, want %s", dns.RcodeToString[m.Rcode], dns.RcodeToString[tt.rcode])
				}
			}
			if got := u.asked.Load(); got != tt.asked {
				t.Errorf("upstream asked %d times, want %d", got, tt.asked)
			}
		})
	}
}

func TestAnswerAsAsked(t *testing.T) {
	u := newUpstream(t, with("www.example.org. 60 IN CNAME real.example.org.", "real.example.org. 60 IN A 192.0.2.1"))
	r := start(t, forward.Options{Upstreams: []netip.AddrPort{u.addr}})
	for _, name := range []string{"www.example.org.", "wWw.eXaMpLe.oRg."} {
		q := query(t, name, dns.TypeA, func(m *dns.Msg) { m.SetEdns0(4096, false); m.CheckingDisabled = false })
		m, err := ask(t, r, q)
		if err != nil {
			t.Fatal(err)
		}
		if m.Id != q.ID() || m.Question[0].Name != name || m.Answer[0].Header().Name != name || m.Authoritative || !m.RecursionAvailable || m.IsEdns0() == nil {
			t.Errorf("asked as %s: %v", name, m)
		}
	}
	if got := u.asked.Load(); got != 1 {
		t.Errorf("upstream asked %d times for one name in two spellings, want once", got)
	}
	// Without EDNS none comes back.
	if m, _ := ask(t, r, query(t, "www.example.org.", dns.TypeA)); m.IsEdns0() != nil {
		t.Errorf("EDNS unasked: %v", m)
	}
	// DNSSEC is another answer.
	ask(t, r, query(t, "www.example.org.", dns.TypeA, func(m *dns.Msg) { m.SetEdns0(4096, true) }))
	if got := u.asked.Load(); got != 2 {
		t.Errorf("upstream asked %d times with and without DNSSEC, want twice", got)
	}
}

// An answer too large for a datagram is fetched over TCP, and an asker with
// little room is told to come over TCP too.
func TestLargeAnswer(t *testing.T) {
	var rrs []string
	for i := range 200 {
		rrs = append(rrs, fmt.Sprintf("big.example.org. 60 IN A 192.0.2.%d", i))
	}
	u := newUpstream(t, func(w dns.ResponseWriter, m *dns.Msg) {
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			r := new(dns.Msg)
			r.SetReply(m).Truncated = true
			w.WriteMsg(r)
			return
		}
		reply(w, m, rrs...)
	})
	r := start(t, forward.Options{Upstreams: []netip.AddrPort{u.addr}})
	q := query(t, "big.example.org.", dns.TypeA)
	m, err := ask(t, r, q)
	if err != nil || m.Truncated || len(m.Answer) != 200 {
		t.Fatalf("over TCP: %v, %v", m, err)
	}
	a, _ := r.Resolve(context.Background(), q)
	small := new(dns.Msg)
	raw := a.Write(q, nil, 512, 1232, time.Now())
	if err := small.Unpack(raw); err != nil || !small.Truncated || len(raw) > 512 || len(small.Answer) < 25 || small.Answer[0].Header().Ttl != 60 {
		t.Errorf("in 512 bytes: %d, truncated %v, %d records, %v", len(raw), small.Truncated, len(small.Answer), err)
	}
}

// What is only a help is left out without a word where there is no room; what
// was asked for, and the SOA of a denial, is not.
func TestLittleRoom(t *testing.T) {
	const address, help = "www.example.org. 60 IN A 192.0.2.1", "example.org. 60 IN NS ns%d.example.org."
	soa := "example.org. 60 IN SOA " + strings.Repeat("a.", 100) + " " + strings.Repeat("b.", 100) + " 1 2 3 4 60"
	for _, tt := range []struct {
		what           string
		rcode          int
		answers, helps int
		soa            bool
		want           int // records told
		truncated      bool
	}{
		{"help", dns.RcodeSuccess, 2, 40, false, 2, false},
		{"all but the last", dns.RcodeSuccess, 40, 1, false, 29, true},
		{"denial", dns.RcodeNameError, 0, 0, true, 0, true},
	} {
		m := new(dns.Msg)
		m.SetQuestion("www.example.org.", dns.TypeA)
		m.Response, m.Rcode = true, tt.rcode
		add := func(to *[]dns.RR, s string) {
			rr, err := dns.NewRR(s)
			if err != nil {
				t.Fatal(err)
			}
			*to = append(*to, rr)
		}
		for range tt.answers {
			add(&m.Answer, address)
		}
		for i := range tt.helps {
			add(&m.Ns, fmt.Sprintf(help, i))
		}
		if tt.soa {
			add(&m.Ns, soa)
		}
		q := query(t, "www.example.org.", dns.TypeA)
		a, err := forward.NewAnswerForTest(q, m)
		if err != nil {
			t.Fatal(err)
		}
		size := 512
		if tt.soa {
			size = 300
		}
		got := new(dns.Msg)
		raw := a.Write(q, nil, size, 1232, time.Now())
		if err := got.Unpack(raw); err != nil || len(raw) > size || got.Truncated != tt.truncated || len(got.Answer) != tt.want || len(got.Ns)+len(got.Extra) > 0 {
			t.Errorf("%s: %d bytes, truncated %v, %d records, %v; want truncated %v, %d", tt.what, len(raw), got.Truncated, len(got.Answer), err, tt.truncated, tt.want)
		}
	}
}

// Who validates is asked to say so, and who asks for it is told.
func TestAuthenticData(t *testing.T) {
	u := newUpstream(t, func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg)
		r.SetReply(m).AuthenticatedData = m.AuthenticatedData
		rr, _ := dns.NewRR("www.example.org. 60 IN A 192.0.2.1")
		r.Answer = []dns.RR{rr}
		w.WriteMsg(r)
	})
	r := start(t, forward.Options{Upstreams: []netip.AddrPort{u.addr}})
	for _, want := range []bool{false, true, false} {
		m, err := ask(t, r, query(t, "www.example.org.", dns.TypeA, func(m *dns.Msg) { m.AuthenticatedData = want }))
		if err != nil || m.AuthenticatedData != want {
			t.Errorf("asked with AD %v: %v, %v", want, m, err)
		}
	}
}

// An answer holds no longer than any of its records, nor than its denial.
func TestHowLongItHolds(t *testing.T) {
	const cname, soa = "www.example.org. %d IN CNAME x.example.org.", "example.org. %d IN SOA a. b. 1 2 3 4 %d"
	for _, tt := range []struct {
		rcode       int
		answer, soa string
		want        int // seconds; 0 for not at all
	}{
		{dns.RcodeSuccess, "www.example.org. 20 IN A 192.0.2.1", "", 20},
		{dns.RcodeSuccess, "www.example.org. 90000 IN A 192.0.2.1", "", 3600},
		{dns.RcodeSuccess, "www.example.org. 0 IN A 192.0.2.1", "", 0},
		{dns.RcodeSuccess, "", fmt.Sprintf(soa, 60, 30), 30},
		{dns.RcodeNameError, "", fmt.Sprintf(soa, 30, 60), 30},
		{dns.RcodeNameError, "", fmt.Sprintf(soa, 3000, 3000), 300},
		{dns.RcodeNameError, "", "", 0},
		{dns.RcodeSuccess, fmt.Sprintf(cname, 20), fmt.Sprintf(soa, 60, 60), 20},
		{dns.RcodeNameError, fmt.Sprintf(cname, 20), fmt.Sprintf(soa, 60, 60), 20},
		{dns.RcodeNameError, fmt.Sprintf(cname, 60), fmt.Sprintf(soa, 20, 60), 20},
	} {
		q := query(t, "www.example.org.", dns.TypeA, func(m *dns.Msg) { m.SetEdns0(1232, false) })
		m := new(dns.Msg)
		m.SetQuestion("www.example.org.", dns.TypeA)
		m.Response, m.Rcode = true, tt.rcode
		for _, s := range []string{tt.answer, tt.soa} {
			if rr, err := dns.NewRR(s); err != nil {
				t.Fatal(err)
			} else if rr != nil && s == tt.soa {
				m.Ns = []dns.RR{rr}
			} else if rr != nil {
				m.Answer = []dns.RR{rr}
			}
		}
		a, err := forward.NewAnswerForTest(q, m)
		if err != nil {
			t.Fatal(err)
		}
		if got := forward.LifetimeForTest(a); got != time.Duration(tt.want)*time.Second {
			t.Errorf("%s %q %q: holds for %v, want %ds", dns.RcodeToString[tt.rcode], tt.answer, tt.soa, got, tt.want)
		}
	}
}

// An upstream that cannot be reached over TCP leaves what it says over UDP: not
// all, marked as cut, and asked for again each time.
func TestNoTCP(t *testing.T) {
	u := newUpstream(t, func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg)
		r.SetReply(m).Truncated = true
		rr, _ := dns.NewRR("www.example.org. 60 IN A 192.0.2.1")
		r.Answer = []dns.RR{rr}
		w.WriteMsg(r)
	})
	r := start(t, forward.Options{Upstreams: []netip.AddrPort{u.addr}, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if network == "tcp" {
			return nil, errors.New("no TCP in this test")
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}})
	for i := range int64(2) {
		m, err := ask(t, r, query(t, "www.example.org.", dns.TypeA))
		if err != nil || !m.Truncated || len(m.Answer) != 1 {
			t.Errorf("%v, %v; want one record, marked as cut", m, err)
		}
		if got := u.asked.Load(); got != i+1 {
			t.Errorf("asked %d times, want %d", got, i+1)
		}
	}
}

func TestTimeToLiveRunsDown(t *testing.T) {
	u := newUpstream(t, with("www.example.org. 60 IN A 192.0.2.1"))
	r := start(t, forward.Options{Upstreams: []netip.AddrPort{u.addr}})
	q := query(t, "www.example.org.", dns.TypeA)
	a, err := r.Resolve(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	for after, want := range map[time.Duration]uint32{0: 60, 25 * time.Second: 35, 2 * time.Minute: 30} { // the last is stale
		m := new(dns.Msg)
		m.Unpack(a.Write(q, nil, 512, 1232, time.Now().Add(after)))
		if got := m.Answer[0].Header().Ttl; got > want || got+1 < want {
			t.Errorf("after %v: time to live %d, want %d", after, got, want)
		}
	}
}

func TestNoServeStale(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, with("known.example.org. 1 IN A 192.0.2.1"))
	r := start(t, forward.Options{Upstreams: []netip.AddrPort{u.addr}, ServeStale: -1})
	known := query(t, "known.example.org.", dns.TypeA)
	if _, err := ask(t, r, known); err != nil {
		t.Fatal(err)
	}
	u.become(silent)
	eventually(t, "the answer is past its end", func() bool { return r.Lookup(known, time.Now()) == nil })
	if m, err := ask(t, r, known); err == nil {
		t.Errorf("stale answer though that is off: %v", m)
	}
}

// Many who ask the same at once make one question.
func TestOneFlight(t *testing.T) {
	release := make(chan struct{})
	u := newUpstream(t, func(w dns.ResponseWriter, m *dns.Msg) {
		<-release
		reply(w, m, "www.example.org. 60 IN A 192.0.2.1")
	})
	r := start(t, forward.Options{Upstreams: []netip.AddrPort{u.addr}})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := ask(t, r, query(t, "www.example.org.", dns.TypeA)); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "the upstream is asked", func() bool { return u.asked.Load() > 0 })
	close(release)
	wg.Wait()
	if got := u.asked.Load(); got > 2 { // a second one if it was slow
		t.Errorf("upstream asked %d times by 50 at once", got)
	}
}

func TestPrefetch(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, with("www.example.org. 2 IN A 192.0.2.1"))
	r := start(t, forward.Options{Upstreams: []netip.AddrPort{u.addr}})
	q := query(t, "www.example.org.", dns.TypeA)
	if _, err := ask(t, r, q); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a popular name is fetched anew before its end", func() bool {
		if r.Lookup(q, time.Now()) == nil {
			ask(t, r, q) // the machine was too slow; once more
		}
		return metric(t, r, "coredns_cache_prefetch_total") > 0
	})
}

func TestCacheIsBounded(t *testing.T) {
	u := newUpstream(t, func(w dns.ResponseWriter, m *dns.Msg) { reply(w, m, m.Question[0].Name+" 60 IN A 192.0.2.1") })
	r := start(t, forward.Options{Upstreams: []netip.AddrPort{u.addr}, CacheSize: 32})
	for i := range 200 {
		if _, err := ask(t, r, query(t, "n"+strings.Repeat("x", i%60)+string(rune('a'+i%26))+".example.org.", dns.TypeA)); err != nil {
			t.Fatal(err)
		}
	}
	if n := metric(t, r, "coredns_cache_entries"); n > 32 || n < 1 {
		t.Errorf("%v entries, want at most 32", n)
	}
	if metric(t, r, "coredns_cache_evictions_total") == 0 {
		t.Error("no evictions are counted")
	}
}

// Names that do not exist, one after the other, leave what does exist in the cache.
func TestDenialsPushNothingOut(t *testing.T) {
	u := newUpstream(t, func(w dns.ResponseWriter, m *dns.Msg) {
		switch {
		case strings.HasPrefix(m.Question[0].Name, "web"):
			reply(w, m, m.Question[0].Name+" 60 IN A 192.0.2.1")
		case strings.HasPrefix(m.Question[0].Name, "broken"):
			rcode(dns.RcodeServerFailure)(w, m)
		default:
			rcode(dns.RcodeNameError, "example.org. 60 IN SOA a. b. 1 2 3 4 60")(w, m)
		}
	})
	r := start(t, forward.Options{Upstreams: []netip.AddrPort{u.addr}, CacheSize: 320})
	var names []*wire.Query
	for i := range 20 { // few enough for any part of the cache
		names = append(names, query(t, fmt.Sprintf("web%d.example.org.", i), dns.TypeA))
	}
	for i := range 1000 {
		if i < len(names) {
			if _, err := ask(t, r, names[i]); err != nil {
				t.Fatal(err)
			}
		}
		ask(t, r, query(t, fmt.Sprintf("%s%d.example.org.", []string{"none", "broken"}[i%2], i), dns.TypeA))
	}
	held := 0
	for _, q := range names {
		if r.Lookup(q, time.Now()) != nil {
			held++
		}
	}
	if held < len(names)-2 {
		t.Errorf("%d of %d names are still in the cache after 1000 that do not exist", held, len(names))
	}
	if n := metric(t, r, "coredns_cache_entries"); n > 320 {
		t.Errorf("%v entries, want at most 320", n)
	}
}
