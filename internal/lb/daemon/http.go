package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"fairway.dev/fairway/internal/announce"
	"fairway.dev/fairway/internal/lb"
	"fairway.dev/fairway/internal/proxy/health"
)

// Where /metrics, /healthz and /readyz are served by default. On a node's own
// network an announcer and a controller stand beside each other: each has a
// port of its own.
const (
	DefaultHTTP           = ":7955" // of an announcer, alone or with a controller
	DefaultControllerHTTP = ":7956" // of a controller alone
)

// Part is what is served about: an announce.Monitor or an lb.Monitor.
type Part interface {
	prometheus.Collector
	Live() error
	Ready() error
}

var (
	_ Part = (*announce.Monitor)(nil)
	_ Part = (*lb.Monitor)(nil)
)

// Handler serves /metrics, /healthz (200 while all parts turn), /readyz (200
// when all parts do their work, or stand by to) and, for profiling, /debug/pprof.
// What fails is answered with 503 and why.
func Handler(profiling bool, parts ...Part) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, p := range parts {
		registry.MustRegister(p)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	check := func(path string, ask func(Part) error) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			var errs []error
			for _, p := range parts {
				errs = append(errs, ask(p))
			}
			if err := errors.Join(errs...); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			fmt.Fprint(w, "OK")
		})
	}
	check("/healthz", Part.Live)
	check("/readyz", Part.Ready)
	if profiling {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// Serve serves h on addresses until ctx ends. An address that cannot be had is
// tried again every second: addresses are announced all the same, and the
// process before this one may still be going.
func Serve(ctx context.Context, listen health.ListenFunc, addresses []string, h http.Handler, logger *slog.Logger) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, a := range addresses {
		wg.Go(func() {
			for reported := false; ; reported = true {
				done, err := health.Serve(ctx, listen, a, h)
				if err == nil {
					<-done
					return
				}
				if !reported {
					logger.Error("cannot serve metrics and health, will try again", "address", a, "err", err)
				}
				select {
				case <-ctx.Done():
					return
				case <-time.After(time.Second):
				}
			}
		})
	}
}

// addresses are those of --http, or the default.
func (f *Flags) addresses() ([]string, error) {
	list := f.HTTP
	if f.usual != nil && f.usual() && !f.Announce {
		list = []string{DefaultControllerHTTP}
	}
	for _, a := range list {
		if _, _, err := net.SplitHostPort(a); err != nil {
			return nil, fmt.Errorf("--http: %q is not an address and port such as :7955 or 127.0.0.1:7955: %w", a, err)
		}
	}
	return list, nil
}
