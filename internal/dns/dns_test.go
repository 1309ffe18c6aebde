package dns_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/bench/proxy/fakeapi"
	"fairway.dev/fairway/internal/dns"
)

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("did not come true: %s", what)
}

// newAPI is a stand-in for an API server with one Service.
func newAPI(t *testing.T) (*fakeapi.Server, kubernetes.Interface) {
	t.Helper()
	api := fakeapi.New()
	api.Set(fakeapi.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	api.Set(fakeapi.Services, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.20", ClusterIPs: []string{"10.96.0.20"}}})
	web := httptest.NewServer(api)
	t.Cleanup(func() {
		web.CloseClientConnections()
		web.Close()
	})
	client, err := kubernetes.NewForConfig(&rest.Config{Host: web.URL, ContentConfig: rest.ContentConfig{ContentType: "application/vnd.kubernetes.protobuf"}})
	if err != nil {
		t.Fatal(err)
	}
	return api, client
}

func status(t *testing.T, addr, path string) (int, string) {
	t.Helper()
	r, err := http.Get("http://" + addr + path)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	return r.StatusCode, string(b)
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Ready when the names are there, not before; unready but answering when told
// to stop; gone after that.
func TestLife(t *testing.T) {
	for what, stream := range map[string]bool{"streaming lists": true, "lists of old": false} {
		t.Run(what, func(t *testing.T) {
			api, client := newAPI(t)
			if !stream {
				api.NoStreaming()
			}
			api.Refuse(fakeapi.EndpointSlices, http.StatusServiceUnavailable)
			synced := make(chan struct{})
			web := freePort(t)
			d, err := dns.New(dns.Options{Client: client, Addrs: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, HTTP: []string{web},
				Lameduck: 3 * time.Second, NoForward: true, OnSync: func() { close(synced) }})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- d.Run(ctx) }()
			defer func() { cancel(); <-done }()
			ask := func() string {
				m := new(miekg.Msg)
				m.SetQuestion("web.default.svc.cluster.local.", miekg.TypeA)
				r, _, err := (&miekg.Client{Timeout: 5 * time.Second}).Exchange(m, d.Addr().String())
				if err != nil {
					return err.Error()
				}
				return miekg.RcodeToString[r.Rcode]
			}
			eventually(t, "it lives", func() bool { code, _ := status(t, web, "/health"); return code == 200 })
			if code, why := status(t, web, "/ready"); code != 503 || !strings.Contains(why, "names") {
				t.Errorf("ready without EndpointSlices: %d %s", code, why)
			}
			if got := ask(); got != "SERVFAIL" {
				t.Errorf("asked without EndpointSlices: %s, want SERVFAIL", got)
			}
			api.Refuse(fakeapi.EndpointSlices, 0)
			eventually(t, "it is ready", func() bool { code, _ := status(t, web, "/ready"); return code == 200 })
			if got := ask(); got != "NOERROR" {
				t.Errorf("asked: %s", got)
			}
			if code, text := status(t, web, "/metrics"); code != 200 || !strings.Contains(text, "coredns_dns_requests_total") {
				t.Errorf("metrics: %d", code)
			}
			<-synced
			// A watch that breaks loses nothing.
			api.BreakWatches()
			api.Forget()
			svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"}}
			api.Delete(fakeapi.Services, svc)
			eventually(t, "the name is gone though the watch was broken", func() bool { return ask() == "NXDOMAIN" })
			cancel()
			eventually(t, "it is not ready any more", func() bool { code, _ := status(t, web, "/ready"); return code == 503 })
			if got := ask(); got != "NXDOMAIN" {
				t.Errorf("asked when about to stop: %s", got)
			}
			// What it tells until then is still true.
			svc.Spec.ClusterIP = "10.96.0.21"
			api.Set(fakeapi.Services, svc)
			eventually(t, "the name is back though it is about to stop", func() bool { return ask() == "NOERROR" })
			if err := <-done; err != nil {
				t.Error(err)
			}
			done <- nil
			if code, _ := status(t, web, "/health"); code != 0 {
				t.Error("still there after its end")
			}
		})
	}
}

func TestCannotListen(t *testing.T) {
	_, client := newAPI(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for what, o := range map[string]dns.Options{
		"address that is not here": {Addrs: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}},
		"port that is taken":       {Addrs: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, HTTP: []string{taken.Addr().String()}},
	} {
		o.Client, o.NoForward = client, true
		d, err := dns.New(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Run(context.Background()); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if _, err := dns.New(dns.Options{}); err == nil {
		t.Error("no client: no error")
	}
}

func TestServiceIPs(t *testing.T) {
	var ranges []netip.Prefix
	for _, s := range []string{"10.96.0.0/16", "fd00:10:96::/112", "192.0.2.0/29"} {
		ranges = append(ranges, netip.MustParsePrefix(s))
	}
	want := []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")}
	if got := dns.ServiceIPs(ranges); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func parse(args ...string) (dns.Options, error) {
	var f dns.Flags
	fs := pflag.NewFlagSet("dns", pflag.ContinueOnError)
	f.Add(fs)
	if err := fs.Parse(append(args, "--master=http://127.0.0.1:1")); err != nil {
		return dns.Options{}, err
	}
	return f.Options()
}

func TestFlags(t *testing.T) {
	o, err := parse("--listen=192.0.2.1:53,:5353", "--upstream=192.0.2.53,[2001:db8::53]:54", "--stub-domain=corp.example=10.1.1.1,10.1.1.2:5353",
		"--reverse-zone=10.96.0.1/16", "--ttl=30s", "--pods=verified", "--serve-stale=0s", "--service-ip=10.96.0.10")
	if err != nil {
		t.Fatal(err)
	}
	if len(o.Addrs) != 2 || o.Addrs[0].String() != "192.0.2.1:53" || !o.Addrs[1].Addr().IsUnspecified() || o.TTL != 30 || o.Pods != "verified" ||
		o.Upstreams[0].String() != "192.0.2.53:53" || o.Upstreams[1].String() != "[2001:db8::53]:54" || len(o.Stubs["corp.example"]) != 2 ||
		o.ReverseZones[0].String() != "10.96.0.0/16" || o.ServeStale >= 0 || len(o.ServiceIPs) != 1 || o.Client == nil {
		t.Errorf("%+v", o)
	}
	if _, err := dns.New(o); err != nil {
		t.Error(err)
	}
	for _, within := range []string{"cluster.local", "Corp.Cluster.Local."} {
		o, err := parse("--stub-domain=" + within + "=10.1.1.1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dns.New(o); err == nil || !strings.Contains(err.Error(), within) {
			t.Errorf("stub domain %s: %v, want an error that names it", within, err)
		}
	}
	for _, bad := range []string{"--listen=web:53", "--upstream=ns.example", "--stub-domain=corp.example", "--stub-domain=a=b", "--reverse-zone=10.0.0.0",
		"--ttl=1500ms", "--ttl=0s", "--service-ip=x", "--log-level=loud"} {
		flag, _, _ := strings.Cut(bad, "=")
		if _, err := parse(bad); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v, want an error that names the flag", bad, err)
		}
	}
}
