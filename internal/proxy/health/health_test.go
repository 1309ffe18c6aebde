package health

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"fairway.dev/fairway/internal/proxy/state"
)

func TestProxyAnswers(t *testing.T) {
	now := time.Unix(1000, 0)
	p := NewProxy(10*time.Second, "IPv4", "IPv6")
	p.now = func() time.Time { return now }
	codes := map[string]int{}
	h := p.Handler(func(path string, code int) { codes[fmt.Sprint(path, code)]++ })
	check := func(what string, healthz, livez int) {
		t.Helper()
		for path, want := range map[string]int{"/healthz": healthz, "/livez": livez} {
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, httptest.NewRequest("GET", path, nil))
			var body struct {
				LastUpdated, CurrentTime time.Time
				NodeEligible             *bool
				Healthy                  bool
				Status                   map[string]struct{ Healthy bool }
			}
			if err := json.Unmarshal(rec.Body.Bytes(), &body); err != nil {
				t.Fatalf("%s: %s: %v", what, path, err)
			}
			if rec.Code != want {
				t.Errorf("%s: %s answers %d, want %d", what, path, rec.Code, want)
			}
			if body.Healthy != (livez == 200) || body.Status["IPv6"].Healthy != body.Healthy || (body.NodeEligible != nil) != (path == "/healthz") {
				t.Errorf("%s: %s says %s", what, path, rec.Body)
			}
			if rec.Code == 200 && !body.LastUpdated.Equal(now) {
				t.Errorf("%s: %s: lastUpdated %v is not now", what, path, body.LastUpdated)
			}
			if ct := rec.Header().Get("Content-Type"); ct != "application/json" {
				t.Errorf("content type %q", ct)
			}
		}
	}
	check("no Node yet", 503, 200)
	p.SetEligible(true)
	check("started", 200, 200)
	p.Queued()
	now = now.Add(9 * time.Second)
	p.Queued() // the oldest counts
	check("a change waits", 200, 200)
	now = now.Add(2 * time.Second)
	check("it waits too long", 503, 503)
	p.Updated()
	check("programmed", 200, 200)
	now = now.Add(time.Hour)
	check("quiet", 200, 200)
	p.SetEligible(false)
	check("Node is leaving", 503, 200)
	if codes["/healthz503"] != 3 || codes["/livez503"] != 1 {
		t.Errorf("counted %v", codes)
	}
}

func TestServices(t *testing.T) {
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(free.Addr().(*net.TCPAddr).Port)
	var lc net.ListenConfig
	healthy := true
	s := NewServices(lc.Listen, func() bool { return healthy }, slog.New(slog.DiscardHandler))
	s.SetAddrs([]netip.Addr{netip.MustParseAddr("127.0.0.1")})
	defer s.Close()
	h := state.HealthCheck{Service: state.Name{Namespace: "ns", Name: "web"}, Port: port, Serves: [2]bool{true, true}}

	s.Set(h)
	if !s.Failing() {
		t.Fatal("took a port that somebody else has")
	}
	free.Close()
	if s.Retry() {
		t.Fatal("port is free, but was not had")
	}
	get := func(code, endpoints int) {
		t.Helper()
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, _ := io.ReadAll(resp.Body)
		var body struct {
			Service             struct{ Namespace, Name string }
			LocalEndpoints      int
			ServiceProxyHealthy bool
		}
		if err := json.Unmarshal(raw, &body); err != nil {
			t.Fatalf("%v in %s", err, raw)
		}
		if resp.StatusCode != code || body.LocalEndpoints != endpoints || body.ServiceProxyHealthy != healthy ||
			body.Service.Namespace != "ns" || body.Service.Name != "web" ||
			resp.Header.Get("X-Load-Balancing-Endpoint-Weight") != fmt.Sprint(endpoints) {
			t.Errorf("%d %v %s; want %d with %d endpoints", resp.StatusCode, resp.Header, raw, code, endpoints)
		}
	}
	get(503, 0)
	h.LocalReady = [2]int{2, 7}
	s.Set(h)
	get(200, 2)
	healthy = false
	get(503, 2)
	healthy = true
	s.Set(state.HealthCheck{Service: h.Service})
	if _, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port)); err == nil {
		t.Error("still answers after it was removed")
	}
}

func TestServe(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var addr string
	listen := func(ctx context.Context, network, _ string) (net.Listener, error) {
		l, err := net.Listen(network, "127.0.0.1:0")
		if err == nil {
			addr = l.Addr().String()
		}
		return l, err
	}
	done, err := Serve(ctx, listen, "0.0.0.0:10256", NewProxy(time.Second).Handler(nil))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + addr + "/livez")
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("livez: %v %v", resp, err)
	}
	resp.Body.Close()
	cancel()
	<-done
}
