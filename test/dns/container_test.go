package dns_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"fairway.dev/fairway/bench/proxy/fakeapi"
	"fairway.dev/fairway/internal/testenv"
)

// manifestContainer is the container of the first document of a manifest.
func manifestContainer(t *testing.T, file string, into any, pod func() *corev1.PodSpec) *corev1.Container {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../deploy/dns", file))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := bytes.Cut(b, []byte("\n---\n"))
	if err := yaml.UnmarshalStrict(first, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if list := pod().Containers; len(list) != 1 {
		t.Fatalf("%s: %d containers, want one", file, len(list))
	}
	return &pod().Containers[0]
}

// machine is a host with an API as Pods reach it, an upstream, and containers.
type machine struct {
	*testenv.Host
	*testenv.Containers
}

// newMachine has one Service, default/web at 10.96.0.20.
func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{Host: testenv.NewHost(t, "node")}
	api := fakeapi.New()
	api.Set(fakeapi.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	api.Set(fakeapi.Services, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.20", ClusterIPs: []string{"10.96.0.20"}}})
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer letmein" {
			http.Error(w, "no token", http.StatusUnauthorized)
			return
		}
		api.ServeHTTP(w, r)
	}))
	web.Listener.Close()
	web.Listener = m.Listen(t, "tcp", "127.0.0.1:6443")
	web.StartTLS()
	t.Cleanup(func() { web.CloseClientConnections(); web.Close() })
	upstream := &miekg.Server{PacketConn: m.ListenPacket(t, "udp", "127.0.0.53:53"), Handler: miekg.HandlerFunc(func(w miekg.ResponseWriter, q *miekg.Msg) {
		r := new(miekg.Msg)
		r.SetReply(q)
		rr, err := miekg.NewRR(q.Question[0].Name + " 60 IN A 192.0.2.80")
		if err == nil && q.Question[0].Qtype == miekg.TypeA {
			r.Answer = append(r.Answer, rr)
		}
		w.WriteMsg(r) //nolint:errcheck
	})}
	go upstream.ActivateAndServe() //nolint:errcheck
	t.Cleanup(func() { upstream.Shutdown() })

	// What a kubelet puts into a Pod with dnsPolicy Default.
	account := t.TempDir()
	for path, content := range map[string]string{
		filepath.Join(account, "token"):  "letmein",
		filepath.Join(account, "ca.crt"): string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw})),
		account + ".resolv.conf":         "search example.com\nnameserver 127.0.0.53\noptions ndots:5\n",
	} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m.Containers = testenv.NewContainers(t, m.Host, testenv.NodeProgram(t, "image"))
	m.Mounts = map[string]string{account: "/var/run/secrets/kubernetes.io/serviceaccount", account + ".resolv.conf": "/etc/resolv.conf"}
	m.Env = []string{"KUBERNETES_SERVICE_HOST=127.0.0.1", "KUBERNETES_SERVICE_PORT=6443"}
	return m
}

// output is a buffer for a process's.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// start runs a container; its end is told once.
func (m *machine) start(t *testing.T, id string, spec *corev1.Container) (*exec.Cmd, *output, <-chan error) {
	t.Helper()
	cmd, out := m.Command(t, id, spec), &output{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited, gone := make(chan error, 1), make(chan struct{})
	go func() { exited <- cmd.Wait(); close(gone) }()
	t.Cleanup(func() { m.Kill(id); <-gone })
	eventually(t, id+" is ready", func() bool {
		select {
		case <-gone:
			t.Fatalf("%s ended:\n%s", id, out)
		default:
		}
		return m.probe(spec.ReadinessProbe) == http.StatusOK
	})
	return cmd, out, exited
}

// probe asks what a kubelet asks, and returns the status, 0 if nobody answers.
func (m *machine) probe(p *corev1.Probe) int {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return m.NS.DialContext(ctx, network, addr)
	}}}
	r, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d%s", p.HTTPGet.Port.IntValue(), p.HTTPGet.Path))
	if err != nil {
		return 0
	}
	defer r.Body.Close()
	io.Copy(io.Discard, r.Body) //nolint:errcheck
	return r.StatusCode
}

// ask asks for an IPv4 address on the manifest's port.
func (m *machine) ask(network, name string) (string, error) {
	conn, err := m.Dial(network, "127.0.0.1:5353", 5*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	q := new(miekg.Msg)
	q.SetQuestion(name, miekg.TypeA)
	r, _, err := (&miekg.Client{Timeout: 5 * time.Second}).ExchangeWithConn(q, &miekg.Conn{Conn: conn})
	if err != nil {
		return "", err
	}
	if len(r.Answer) != 1 {
		return "", fmt.Errorf("%s: %s, %d records", name, miekg.RcodeToString[r.Rcode], len(r.Answer))
	}
	return r.Answer[0].(*miekg.A).A.String(), nil
}

// TestContainer runs the container of deploy/dns as the manifests say: in an
// image from scratch, as a user who may do nothing, the root read-only, the
// system calls of the default profile.
func TestContainer(t *testing.T) {
	testenv.RequireContainerd(t)
	var d appsv1.Deployment
	var ds appsv1.DaemonSet
	spec := manifestContainer(t, "deployment.yaml", &d, func() *corev1.PodSpec { return &d.Spec.Template.Spec })
	other := manifestContainer(t, "daemonset.yaml", &ds, func() *corev1.PodSpec { return &ds.Spec.Template.Spec }).DeepCopy()
	other.Resources = spec.Resources // which differ, and are the cgroup's business
	if !reflect.DeepEqual(spec, other) {
		t.Fatalf("the DaemonSet's container is not the Deployment's, which this test runs:\n%+v\n%+v", other, spec)
	}
	m := newMachine(t)
	all := func(when string) {
		t.Helper()
		for _, network := range []string{"udp", "tcp"} {
			for name, want := range map[string]string{"web.default.svc.cluster.local.": "10.96.0.20", "www.example.com.": "192.0.2.80"} {
				if got, err := m.ask(network, name); err != nil || got != want {
					t.Errorf("%s, %s over %s: %q, %v; want %s", when, name, network, got, err, want)
				}
			}
		}
	}
	_, _, killed := m.start(t, "dns-1", spec)
	all("ready")
	for line, want := range map[string]string{"Uid": "65532 65532 65532 65532", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"} {
		if got := m.Status(t, "dns-1", line); got != want {
			t.Errorf("%s of the container's process is %s, want %s", line, got, want)
		}
	}
	if code := m.probe(spec.LivenessProbe); code != http.StatusOK {
		t.Errorf("the liveness probe's status is %d", code)
	}
	m.Kill("dns-1")
	if err := <-killed; err == nil {
		t.Error("the killed container says that all was well")
	}
	// As a kubelet does it: the next one on the same ports.
	cmd, out, ended := m.start(t, "dns-2", spec)
	all("after a kill")

	// Told to stop, it says that it is not ready, and answers until it ends.
	lameduck, ok := "", false
	for _, a := range spec.Args {
		if lameduck, ok = strings.CutPrefix(a, "--lameduck="); ok {
			break
		}
	}
	wait, err := time.ParseDuration(lameduck)
	if err != nil {
		t.Fatalf("--lameduck: %v", err)
	}
	told := time.Now()
	cmd.Process.Signal(syscall.SIGTERM) // which ctr hands on
	eventually(t, "it is not ready", func() bool { return m.probe(spec.ReadinessProbe) == http.StatusServiceUnavailable })
	for n := 0; time.Since(told) < wait-wait/5; n++ {
		if got, err := m.ask([]string{"udp", "tcp"}[n%2], "web.default.svc.cluster.local."); err != nil || got != "10.96.0.20" {
			t.Fatalf("%v after it was told to stop: %q, %v", time.Since(told), got, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := <-ended; err != nil || time.Since(told) < wait {
		t.Errorf("told to stop it ends after %v with %v, want %v", time.Since(told), err, wait)
	}
	if s := out.String(); strings.Contains(s, "level=ERROR") || strings.Contains(s, "level=WARN") {
		t.Errorf("it complains:\n%s", s)
	}
}
