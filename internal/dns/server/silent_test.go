package server_test

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/server"
)

// While no upstream answers, names outside fail within two seconds each,
// however many are asked for, and the cluster's own are answered as ever.
func TestSilentUpstream(t *testing.T) {
	t.Parallel()
	s := serve(t, nil, loopback, func(o *server.Options) { o.PerClient = 1000 })
	ask := func(name string) (*dns.Msg, time.Duration) {
		begin := time.Now()
		r, _, err := (&dns.Client{Timeout: 20 * time.Second}).Exchange(question(name, dns.TypeA), s.UDPAddr().String())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return new(dns.Msg), 0
		}
		return r, time.Since(begin)
	}
	const askers, each = 100, 3
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failures []time.Duration
	var left atomic.Int32
	left.Store(askers)
	for i := range askers {
		wg.Go(func() {
			defer left.Add(-1)
			for j := range each {
				r, took := ask(fmt.Sprintf("slow.%d-%d.example.org.", i, j))
				if r.Rcode != dns.RcodeServerFailure {
					t.Errorf("outside: %s, want SERVFAIL", dns.RcodeToString[r.Rcode])
				}
				mu.Lock()
				failures = append(failures, took)
				mu.Unlock()
			}
		})
	}
	var own []time.Duration
	for left.Load() > 0 {
		r, took := ask("web.default.svc.cluster.local.")
		if len(r.Answer) != 1 {
			t.Errorf("the cluster's name: %v", r)
		}
		own = append(own, took)
		time.Sleep(time.Millisecond)
	}
	wg.Wait()
	slices.Sort(failures)
	slices.Sort(own)
	t.Logf("outside: median %v, worst of %d %v; the cluster's own: median %v, worst of %d %v",
		failures[len(failures)/2], len(failures), failures[len(failures)-1], own[len(own)/2], len(own), own[len(own)-1])
	// A few may have waited for the machine and not for the server.
	if p95 := failures[len(failures)*95/100]; p95 > 2*time.Second {
		t.Errorf("one in twenty names outside fails after more than %v, want 2s at most", p95)
	}
	if m := own[len(own)/2]; m > 100*time.Millisecond {
		t.Errorf("the cluster's own name takes %v in the middle", m)
	}
}
