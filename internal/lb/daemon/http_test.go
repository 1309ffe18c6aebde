package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
)

type part struct {
	prometheus.Counter
	live, ready error
}

func (p *part) Live() error  { return p.live }
func (p *part) Ready() error { return p.ready }

func TestHandler(t *testing.T) {
	a := &part{Counter: prometheus.NewCounter(prometheus.CounterOpts{Name: "a_total", Help: "A."})}
	b := &part{Counter: prometheus.NewCounter(prometheus.CounterOpts{Name: "b_total", Help: "B."})}
	get := func(profiling bool, path string) (int, string) {
		answer := httptest.NewRecorder()
		Handler(profiling, a, b).ServeHTTP(answer, httptest.NewRequest("GET", path, nil))
		return answer.Code, answer.Body.String()
	}
	if code, body := get(false, "/metrics"); code != 200 || !strings.Contains(body, "a_total 0") || !strings.Contains(body, "b_total 0") || !strings.Contains(body, "process_resident_memory_bytes") {
		t.Errorf("metrics: %d\n%s", code, body)
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, body := get(false, path); code != 200 || body != "OK" {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	a.ready = errors.New("not yet")
	if code, body := get(false, "/readyz"); code != 503 || body != "not yet\n" {
		t.Errorf("not ready: %d %q", code, body)
	}
	if code, _ := get(false, "/healthz"); code != 200 {
		t.Errorf("lives and is not ready: %d", code)
	}
	b.live = errors.New("stands still")
	if code, body := get(false, "/healthz"); code != 503 || body != "stands still\n" {
		t.Errorf("dead: %d %q", code, body)
	}
	if code, _ := get(false, "/debug/pprof/cmdline"); code != 404 {
		t.Errorf("profiling that nobody asked for: %d", code)
	}
	if code, _ := get(true, "/debug/pprof/cmdline"); code != 200 {
		t.Errorf("profiling: %d", code)
	}
}

func TestAddresses(t *testing.T) {
	for _, tt := range []struct {
		args string
		want []string
		err  bool
	}{
		{"", []string{":7955"}, false},
		{"--controller=false", []string{":7955"}, false},
		{"--announce=false", []string{":7956"}, false},
		{"--announce=false --http=127.0.0.1:1,[::1]:1", []string{"127.0.0.1:1", "[::1]:1"}, false},
		{"--http=", nil, false},
		{"--http=7955", nil, true},
	} {
		var f Flags
		fs := pflag.NewFlagSet("lb", pflag.ContinueOnError)
		f.Add(fs)
		if err := fs.Parse(strings.Fields(tt.args)); err != nil {
			t.Fatal(err)
		}
		got, err := f.addresses()
		if !slices.Equal(got, tt.want) || (err != nil) != tt.err {
			t.Errorf("%q: %v, %v, want %v", tt.args, got, err, tt.want)
		}
	}
}

// TestServe has an address taken by another process for a while.
func TestServe(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := other.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Serve(ctx, new(net.ListenConfig).Listen, []string{address}, Handler(false), slog.New(slog.NewTextHandler(io.Discard, nil)))
	}()
	time.Sleep(10 * time.Millisecond)
	other.Close()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		r, err := http.Get("http://" + address + "/healthz")
		if err == nil {
			r.Body.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	cancel()
	<-ended
}
