package probe

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

func target(t *testing.T, addr string) (Target, int32) {
	t.Helper()
	ap := netip.MustParseAddrPort(addr)
	var d net.Dialer
	return Target{IP: ap.Addr().String(), Container: &v1.Container{Ports: []v1.ContainerPort{{Name: "named", ContainerPort: int32(ap.Port())}}}, Dial: d.DialContext,
		Exec: func(_ context.Context, cmd []string) (int, string, error) {
			switch cmd[0] {
			case "ok":
				return 0, "fine", nil
			case "bad":
				return 1, "not fine", nil
			}
			return 0, "", errors.New("no such command")
		}}, int32(ap.Port())
}

func TestOnce(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
		case "/slow":
			time.Sleep(time.Second)
		default:
			w.WriteHeader(http.StatusTeapot)
		}
	}))
	defer web.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	h := health.NewServer()
	h.SetServingStatus("sick", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	grpc_health_v1.RegisterHealthServer(g, h)
	go g.Serve(l) //nolint:errcheck
	defer g.Stop()

	w, port := target(t, web.Listener.Addr().String())
	r, gport := target(t, l.Addr().String())
	get := func(path string) v1.ProbeHandler {
		return v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: path, Port: intstr.FromInt32(port)}}
	}
	for name, c := range map[string]struct {
		t    Target
		h    v1.ProbeHandler
		want bool
	}{
		"http":             {w, get("/ok"), true},
		"http by name":     {w, v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("named")}}, true},
		"http status":      {w, get("/bad"), false},
		"http timeout":     {w, get("/slow"), false},
		"http no such":     {w, v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Port: intstr.FromString("other")}}, false},
		"tcp":              {w, v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt32(port)}}, true},
		"tcp refused":      {w, v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt32(1)}}, false},
		"exec":             {w, v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"ok"}}}, true},
		"exec exit code":   {w, v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"bad"}}}, false},
		"exec impossible":  {w, v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"none"}}}, false},
		"grpc":             {r, v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: gport}}, true},
		"grpc not serving": {r, v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: gport, Service: ptr.To("sick")}}, false},
		"grpc unknown":     {r, v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: gport, Service: ptr.To("none")}}, false},
		"grpc to http":     {w, v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: port}}, false},
	} {
		timeout := 10 * time.Second
		if name == "http timeout" || name == "grpc to http" {
			timeout = 200 * time.Millisecond
		}
		if ok, msg := Once(t.Context(), c.h, timeout, c.t); ok != c.want {
			t.Errorf("%s: %t (%s), want %t", name, ok, msg, c.want)
		}
	}
}

// Thresholds decide, and an eager watch sees the first success soon.
func TestWatch(t *testing.T) {
	var healthy atomic.Bool
	tg := Target{Exec: func(context.Context, []string) (int, string, error) {
		if healthy.Load() {
			return 0, "", nil
		}
		return 1, "", nil
	}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := &v1.Probe{PeriodSeconds: 2, FailureThreshold: 2, ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"x"}}}}
	decided := make(chan bool, 10)
	var failures atomic.Int32
	go Watch(ctx, p, true, tg, time.Now(), func(ok bool, _ string) { decided <- ok }, func(string) { failures.Add(1) })
	time.AfterFunc(100*time.Millisecond, func() { healthy.Store(true) })
	if !<-decided {
		t.Error("first answer: failure, want success")
	}
	if failures.Load() > 1 {
		t.Errorf("%d failures were counted within a period", failures.Load())
	}
	healthy.Store(false)
	if <-decided {
		t.Error("second answer: success, want failure")
	}
	if n := failures.Load(); n < 2 {
		t.Errorf("decided after %d failures, the threshold is 2", n)
	}
}
