// Package health answers health checks: /healthz and /livez of a node's proxy,
// and the health check node ports of load balancers with policy Local.
//
// In go marks of progress and counts of endpoints, out come HTTP answers in
// kube-proxy's format, which cloud load balancers and probes already read. It
// listens through the function it is given, so that a node with a network
// namespace of its own is answered for inside it.
package health

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"sync"
	"time"
)

// ListenFunc announces on a TCP address; net.ListenConfig.Listen and
// netns.NS.Listen are ones.
type ListenFunc func(ctx context.Context, network, address string) (net.Listener, error)

// Proxy tracks whether a node's proxy keeps up: it is healthy unless a change
// has been waiting to be programmed for longer than the timeout. It is safe
// for concurrent use.
type Proxy struct {
	timeout time.Duration
	now     func() time.Time

	mu       sync.Mutex
	updated  time.Time // zero: not yet
	pending  time.Time // since when a change waits; zero: none does
	eligible bool      // the Node exists and is not about to leave
	families []string
}

// DefaultTimeout is how long a change may wait before the proxy counts as
// unhealthy: kube-proxy's, twice its default sync period.
const DefaultTimeout = time.Minute

// NewProxy returns a Proxy that reports the families, "IPv4" and "IPv6".
func NewProxy(timeout time.Duration, families ...string) *Proxy {
	p := &Proxy{timeout: timeout, now: time.Now, families: families}
	p.updated = p.now()
	return p
}

// Queued tells that a change has arrived.
func (p *Proxy) Queued() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pending.IsZero() {
		p.pending = p.now()
	}
}

// Updated tells that every change that has arrived is programmed.
func (p *Proxy) Updated() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pending, p.updated = time.Time{}, p.now()
}

// SetEligible tells whether load balancers should send traffic to this node.
func (p *Proxy) SetEligible(ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.eligible = ok
}

// Healthy reports whether the proxy keeps up.
func (p *Proxy) Healthy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.healthy()
}

func (p *Proxy) healthy() bool {
	return p.pending.IsZero() || p.now().Sub(p.pending) < p.timeout
}

type familyStatus struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

type status struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyStatus `json:"status,omitempty"`
}

// Handler serves /healthz and /livez. count, if not nil, is told every answer's
// path and code. Both fail while the proxy is unhealthy; /healthz also fails
// while the node is not eligible, so that load balancers drain it before it goes.
func (p *Proxy) Handler(count func(path string, code int)) http.Handler {
	mux := http.NewServeMux()
	for _, path := range []string{"/healthz", "/livez"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			code := p.answer(w, path == "/healthz")
			if count != nil {
				count(path, code)
			}
		})
	}
	return mux
}

func (p *Proxy) answer(w http.ResponseWriter, withNode bool) int {
	p.mu.Lock()
	s := status{LastUpdated: p.updated, CurrentTime: p.now(), Healthy: p.healthy(), Status: map[string]familyStatus{}}
	for _, f := range p.families {
		s.Status[f] = familyStatus{s.LastUpdated, s.Healthy}
	}
	eligible := p.eligible
	p.mu.Unlock()

	ok := s.Healthy
	if withNode {
		s.NodeEligible = &eligible
		ok = ok && eligible
	}
	code := http.StatusServiceUnavailable
	if ok {
		// Whoever judges by the age of the last sync must not take quiet for death.
		s.LastUpdated = s.CurrentTime
		code = http.StatusOK
	}
	body, _ := json.Marshal(s) // cannot fail: plain fields
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	w.Write(body)
	return code
}

// Serve answers HTTP on an address ("0.0.0.0:10256", "[::]:10256") until ctx
// ends. It returns at once, with an error if the address cannot be had; done is
// closed when the server has stopped.
func Serve(ctx context.Context, listen ListenFunc, address string, h http.Handler) (done <-chan struct{}, err error) {
	l, err := listen(ctx, network(address), address)
	if err != nil {
		return nil, err
	}
	return serve(ctx, l, h), nil
}

func serve(ctx context.Context, l net.Listener, h http.Handler) <-chan struct{} {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	go func() {
		defer close(done)
		defer stop()
		srv.Serve(l)
	}()
	return done
}

// network picks the socket family: an IPv4 address must not take the IPv6 one.
func network(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		if ip := net.ParseIP(host); ip != nil && ip.To4() != nil {
			return "tcp4"
		}
	}
	return "tcp"
}
