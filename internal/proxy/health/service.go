package health

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/proxy/state"
)

// Services runs the health check node ports: for each Service one port that
// answers 200 while this node has a ready endpoint of it, else 503. Its methods
// are for one goroutine.
type Services struct {
	listen  ListenFunc
	healthy func() bool
	log     *slog.Logger
	addrs   []netip.Addr
	running map[state.Name]*check
}

// check is one Service's running answerer.
type check struct {
	want   state.HealthCheck
	local  [2]atomic.Int64
	cancel context.CancelFunc
	done   []<-chan struct{}
	failed bool // to be tried again
}

// NewServices returns a Services without any; healthy says whether the proxy
// keeps up: while it does not, every answer is 503.
func NewServices(listen ListenFunc, healthy func() bool, log *slog.Logger) *Services {
	return &Services{listen: listen, healthy: healthy, log: log,
		addrs:   []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()},
		running: map[state.Name]*check{}}
}

// SetAddrs sets the addresses to listen on; the default is every address of
// both families. What runs moves.
func (s *Services) SetAddrs(addrs []netip.Addr) {
	s.addrs = addrs
	for n, c := range s.running {
		c.stop()
		s.running[n] = s.start(c.want)
	}
}

// Set brings one Service up to date; a zero Port stops it. A port that cannot
// be had (somebody else listens) is logged and tried again by Retry.
func (s *Services) Set(h state.HealthCheck) {
	c := s.running[h.Service]
	if c != nil && (c.failed || c.want.Port != h.Port || c.want.Serves != h.Serves) {
		c.stop()
		delete(s.running, h.Service)
		c = nil
	}
	if h.Port == 0 {
		return
	}
	if c == nil {
		s.running[h.Service] = s.start(h)
		return
	}
	c.want = h
	c.setLocal()
}

// Retry tries again the ports that could not be had, and reports whether some
// still cannot.
func (s *Services) Retry() (failing bool) {
	for n, c := range s.running {
		if c.failed {
			c.stop()
			c = s.start(c.want)
			s.running[n] = c
			failing = failing || c.failed
		}
	}
	return failing
}

// Failing reports whether a port could not be had.
func (s *Services) Failing() bool {
	for _, c := range s.running {
		if c.failed {
			return true
		}
	}
	return false
}

// Close stops all.
func (s *Services) Close() {
	for n, c := range s.running {
		c.stop()
		delete(s.running, n)
	}
}

func (c *check) setLocal() {
	for i, n := range c.want.LocalReady {
		c.local[i].Store(int64(n))
	}
}

func (c *check) stop() {
	c.cancel()
	for _, d := range c.done {
		<-d
	}
}

func (s *Services) start(h state.HealthCheck) *check {
	ctx, cancel := context.WithCancel(context.Background())
	c := &check{want: h, cancel: cancel}
	c.setLocal()
	for _, a := range s.addrs {
		i, network := 0, "tcp4"
		if a.Is6() {
			i, network = 1, "tcp6"
		}
		if !h.Serves[i] {
			continue
		}
		l, err := s.bind(ctx, network, netip.AddrPortFrom(a, h.Port).String())
		if err != nil {
			c.failed = true
			s.log.Error("health check node port cannot be opened, trying again", "service", h.Service, "port", h.Port, "address", a, "err", err)
			continue
		}
		c.done = append(c.done, serve(ctx, l, s.handler(h.Service, &c.local[i])))
	}
	return c
}

// bind waits a moment for a predecessor's socket to go.
func (s *Services) bind(ctx context.Context, network, address string) (l net.Listener, err error) {
	for range 3 {
		if l, err = s.listen(ctx, network, address); err == nil {
			return l, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, err
}

func (s *Services) handler(n state.Name, local *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		count, healthy := local.Load(), s.healthy()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.FormatInt(count, 10))
		if count > 0 && healthy {
			w.WriteHeader(http.StatusOK)
		} else {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintf(w, "{\n\t\"service\": {\n\t\t\"namespace\": %q,\n\t\t\"name\": %q\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %v\n}",
			n.Namespace, n.Name, count, healthy)
	})
}
