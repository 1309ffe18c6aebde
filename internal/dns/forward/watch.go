package forward

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/wire"
)

const (
	healthEvery = 500 * time.Millisecond
	resolvEvery = 5 * time.Second
	loopEvery   = 30 * time.Second
)

// readResolvConf reads the name servers of a resolv.conf(5).
func readResolvConf(path string) ([]netip.AddrPort, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []netip.AddrPort
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			if ap := netip.AddrPortFrom(a, 53); !slices.Contains(out, ap) {
				out = append(out, ap)
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: no nameserver in it", path)
	}
	return out, nil
}

// fileState tells one version of a file from another.
type fileState struct{ modified, size int64 }

func stateOf(path string) fileState {
	st, err := os.Stat(path)
	if err != nil {
		return fileState{}
	}
	return fileState{st.ModTime().UnixNano(), st.Size()}
}

// watchResolvConf takes on the file's changes.
func (r *Resolver) watchResolvConf(ctx context.Context) {
	if len(r.opts.Upstreams) > 0 {
		return
	}
	tick := time.NewTicker(resolvEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if stateOf(r.opts.ResolvConf) == r.conf {
			continue
		}
		r.log.Info("upstream DNS servers are read again", "file", r.opts.ResolvConf)
		if err := r.configure(nil); err != nil {
			r.log.Error("read upstream DNS servers", "file", r.opts.ResolvConf, "err", err)
		}
	}
}

// all lists every upstream once.
func (r *Resolver) all() []*upstream {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []*upstream
	for _, g := range r.groups {
		for _, u := range g.upstreams {
			if !slices.Contains(out, u) {
				out = append(out, u)
			}
		}
	}
	return out
}

// checkHealth asks upstreams that seem to be down whether they are there.
func (r *Resolver) checkHealth(ctx context.Context) {
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var wg sync.WaitGroup
		for _, u := range r.all() {
			if u.suspect() {
				wg.Go(func() { r.checkOne(ctx, u) })
			}
		}
		wg.Wait()
	}
}

// checkOne asks an upstream something that every server answers.
func (r *Resolver) checkOne(ctx context.Context, u *upstream) {
	was, before := u.dead.Load(), u.fails.Load()
	m := new(dns.Msg)
	m.SetQuestion(".", dns.TypeNS)
	m.RecursionDesired = false
	_, err := u.exchange(ctx, m)
	switch {
	case ctx.Err() != nil:
	case err == nil && was:
		r.log.Info("upstream DNS server answers again", "upstream", u.addr)
	case err != nil:
		r.m.unhealthy.WithLabelValues("forward", u.addr.String()).Inc()
		// Unless it answered somebody meanwhile.
		if u.fails.Load() > before && !u.dead.Swap(true) {
			r.log.Warn("upstream DNS server does not answer", "upstream", u.addr, "err", err)
		}
	}
}

// probes are questions with names that nobody but this process knows. One that
// comes in from outside has gone in a circle.
type probes struct {
	mu     sync.Mutex
	active map[string]*upstream // by name in wire form
}

// checkLoops finds upstreams that ask this server what they are asked.
func (r *Resolver) checkLoops(ctx context.Context) {
	checked := map[*upstream]bool{}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n := 0; ; n++ {
		again := n%int(loopEvery/time.Second) == 0
		for _, u := range r.all() {
			if !checked[u] || again && u.looping.Load() {
				checked[u] = r.probe(ctx, u)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// probe sends an upstream a question that only this process can know, and
// waits for it to come in. It reports whether the upstream could be asked.
func (r *Resolver) probe(ctx context.Context, u *upstream) bool {
	var b [16]byte
	rand.Read(b[:])
	name := hex.EncodeToString(b[:8]) + "." + hex.EncodeToString(b[8:]) + "."
	key, _ := wire.AppendName(nil, strings.TrimSuffix(name, "."))
	r.probes.mu.Lock()
	r.probes.active[string(key)] = u
	r.probes.mu.Unlock()
	defer func() {
		r.probes.mu.Lock()
		delete(r.probes.active, string(key))
		r.probes.mu.Unlock()
	}()
	was := u.looping.Swap(false)
	m := new(dns.Msg)
	m.SetQuestion(name, dns.TypeHINFO)
	_, err := u.exchange(ctx, m)
	if was && err == nil && !u.looping.Load() {
		r.log.Info("upstream DNS server no longer loops back", "upstream", u.addr)
	}
	return err == nil || u.looping.Load() || errors.Is(err, context.Canceled)
}

// SawProbe reports whether a question is one of this resolver's own that has
// come back, and stops asking the upstream that sent it round.
func (r *Resolver) SawProbe(q *wire.Query) bool {
	if q.Type != dns.TypeHINFO {
		return false
	}
	r.probes.mu.Lock()
	u := r.probes.active[string(q.Name)]
	r.probes.mu.Unlock()
	if u == nil {
		return false
	}
	if !u.looping.Swap(true) {
		r.log.Error("upstream DNS server asks this server what it is asked: a loop; it is not asked until it stops. Give another by --upstream, or take this server out of its configuration",
			"upstream", u.addr)
	}
	return true
}
