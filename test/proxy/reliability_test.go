// Package proxy_test runs the fairway-node binary as a node's proxy and watches
// it from outside: through a kernel, with real connections.
package proxy_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/bench/proxy/fakeapi"
	"fairway.dev/fairway/internal/testenv"
)

// cluster is a node between clients and servers, with an API to watch.
//
//	client 192.0.2.2 — 192.0.2.1 node 10.244.1.1 — 10.244.1.2… servers
type cluster struct {
	client, node, servers *testenv.Host
	api                   *fakeapi.Server
	kubeconfig            string
	podCIDRs              string
}

// connectAPI serves the API on the node and writes a kubeconfig for it.
func (c *cluster) connectAPI(t *testing.T) {
	t.Helper()
	l := c.node.Listen(t, "tcp4", "127.0.0.1:6443")
	srv := &http.Server{Handler: c.api}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	c.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	config := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"http://127.0.0.1:6443\"}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\ncurrent-context: x\n"
	if err := os.WriteFile(c.kubeconfig, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
}

const (
	clusterIP = "10.96.0.10:80"
	nodePort  = "192.0.2.1:30080"
	endpoints = 4
)

func endpointIP(i int) string { return fmt.Sprintf("10.244.1.%d", 2+i) }

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{client: testenv.NewHost(t, "cl"), node: testenv.NewHost(t, "no"), servers: testenv.NewHost(t, "se"), api: fakeapi.New(), podCIDRs: "10.244.0.0/16"}
	c.client.Connect(t, "eth0", c.node, "eth0")
	c.node.Connect(t, "eth1", c.servers, "eth0")
	c.client.AddAddr(t, "eth0", "192.0.2.2/24")
	c.node.AddAddr(t, "eth0", "192.0.2.1/24")
	c.node.AddAddr(t, "eth1", "10.244.1.1/24")
	for i := range endpoints {
		c.servers.AddAddr(t, "eth0", endpointIP(i)+"/24")
	}
	c.client.AddRoute(t, "default4", "192.0.2.1")
	c.servers.AddRoute(t, "default4", "10.244.1.1")
	for i := range endpoints {
		l := c.servers.Listen(t, "tcp4", endpointIP(i)+":8080")
		go echo(l)
	}

	c.api.Set(fakeapi.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}}})
	c.api.Set(fakeapi.ServiceCIDRs, &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/16"}}})
	c.api.Set(fakeapi.Services, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, ClusterIP: "10.96.0.10", ClusterIPs: []string{"10.96.0.10"},
			Ports: []corev1.ServicePort{{Port: 80, NodePort: 30080, Protocol: corev1.ProtocolTCP}}}})
	c.setEndpoints(0, 1, 2, 3)

	c.connectAPI(t)
	return c
}

func (c *cluster) setEndpoints(which ...int) {
	port, name, tcp := int32(8080), "", corev1.ProtocolTCP
	sl := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: "web-x", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &tcp}},
	}
	for _, i := range which {
		sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{Addresses: []string{endpointIP(i)}})
	}
	c.api.Set(fakeapi.EndpointSlices, sl)
}

func echo(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			io.Copy(conn, conn)
			conn.Close()
		}()
	}
}

// process is a running fairway-node proxy.
type process struct {
	cmd    *exec.Cmd
	exited chan error
	ready  chan struct{}
	mu     sync.Mutex
	log    []string
}

// start runs a build on the node until it says that the table is complete.
func (c *cluster) start(t *testing.T, binary string, flags ...string) *process {
	t.Helper()
	p := c.launch(t, binary, flags...)
	p.await(t, "")
	return p
}

// launch runs a build on the node and waits for nothing.
func (c *cluster) launch(t *testing.T, binary string, flags ...string) *process {
	t.Helper()
	cmd := exec.Command(binary, append([]string{"proxy", "--kubeconfig", c.kubeconfig, "--hostname-override", "node-1", "--cluster-cidr", c.podCIDRs, "--oom-score-adj", "0",
		"--conntrack-max-per-core", "0", "--conntrack-tcp-timeout-established", "0", "--conntrack-tcp-timeout-close-wait", "0"}, flags...)...)
	errOut, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, exited: make(chan error, 1)}
	if err := c.node.NS.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	p.follow(errOut)
	t.Cleanup(func() { p.stop(syscall.SIGKILL) })
	return p
}

// follow keeps what the started process logs, and notes when it is ready and
// when it ends.
func (p *process) follow(log io.Reader) {
	ready := make(chan struct{})
	p.ready = ready
	go func() {
		for in := bufio.NewScanner(log); in.Scan(); {
			p.mu.Lock()
			p.log = append(p.log, in.Text())
			p.mu.Unlock()
			if strings.Contains(in.Text(), "msg=programmed ") {
				close(ready)
			}
		}
		p.exited <- p.cmd.Wait()
	}()
}

// await waits until the log says so, or the process is ready if it says nothing.
func (p *process) await(t *testing.T, says string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		select {
		case <-p.ready:
			if says == "" {
				return
			}
		default:
		}
		if says != "" && strings.Contains(p.text(), says) {
			return
		}
	}
	p.stop(syscall.SIGKILL)
	t.Fatalf("the proxy does not get as far as %q:\n%s", says, p.text())
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.log, "\n")
}

// stop sends a signal and waits for the end. It may be called again.
func (p *process) stop(sig syscall.Signal) error {
	p.cmd.Process.Signal(sig)
	err := <-p.exited
	p.exited <- err
	return err
}

// load connects again and again, and keeps some connections open, until stopped.
type load struct {
	c      *cluster
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup
	done   atomic.Int64
	mu     sync.Mutex
	failed []string
}

func (c *cluster) load(t *testing.T) *load {
	l := &load{c: c}
	l.ctx, l.stop = context.WithCancel(context.Background())
	t.Cleanup(func() { l.stop(); l.wg.Wait() })
	for _, address := range []string{clusterIP, nodePort} {
		l.wg.Go(func() { l.again(address) })
		l.wg.Go(func() { l.again(address) })
		l.wg.Go(func() { l.lasting(address) })
	}
	return l
}

func (l *load) fail(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = append(l.failed, time.Now().Format("05.000 ")+fmt.Sprintf(format, args...))
}

// again makes one short connection after the other.
func (l *load) again(address string) {
	for l.ctx.Err() == nil {
		conn, err := l.c.client.Dial("tcp4", address, 20*time.Second)
		if err != nil {
			l.fail("connect %s: %v", address, err)
			continue
		}
		if err := exchange(conn); err != nil {
			l.fail("exchange with %s: %v", address, err)
		}
		conn.Close()
		l.done.Add(1)
		time.Sleep(2 * time.Millisecond)
	}
}

// lasting keeps one connection and uses it all the time.
func (l *load) lasting(address string) {
	conn, err := l.c.client.Dial("tcp4", address, 20*time.Second)
	if err != nil {
		l.fail("connect %s: %v", address, err)
		return
	}
	defer conn.Close()
	for l.ctx.Err() == nil {
		if err := exchange(conn); err != nil {
			l.fail("lasting connection to %s: %v", address, err)
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func exchange(conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Write([]byte("are you there?")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, len("are you there?")))
	return err
}

// check ends the load and fails the test if a single connection suffered.
func (l *load) check(t *testing.T, atLeast int64) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); l.done.Load() < atLeast && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	l.stop()
	l.wg.Wait()
	for i, f := range l.failed {
		if i < 10 {
			t.Error(f)
		}
	}
	t.Logf("%d short connections, %d failures", l.done.Load(), len(l.failed))
	if l.done.Load() < atLeast {
		t.Errorf("only %d connections were made; that shows nothing", l.done.Load())
	}
}

// TestKill: the proxy is killed again and again, at any moment of its life,
// while endpoints come and go, and nobody who connects notices.
func TestKill(t *testing.T) {
	testenv.RequireRoot(t)
	c := newCluster(t)
	binary := testenv.NodeProgram(t, "one")
	p := c.start(t, binary)
	l := c.load(t)
	for i := range 12 {
		c.setEndpoints(i%4, (i+1)%4, (i+2)%4)
		time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond)
		p.stop(syscall.SIGKILL)
		c.setEndpoints((i+1)%4, (i+2)%4, (i+3)%4) // nobody is there to see it
		time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
		if i%3 == 2 { // die young: before, while or just after adopting the table
			young := exec.Command(binary, p.cmd.Args[1:]...)
			if err := c.node.NS.Do(young.Start); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(rand.IntN(80)) * time.Millisecond)
			young.Process.Kill()
			young.Wait()
		}
		p = c.start(t, binary)
	}
	l.check(t, 500)
	if s := p.text(); strings.Contains(s, "level=ERROR") {
		t.Errorf("the last proxy complains:\n%s", s)
	}
}

// TestUpgrade: another build takes over, after the old one has ended and while
// it still runs.
func TestUpgrade(t *testing.T) {
	testenv.RequireRoot(t)
	c := newCluster(t)
	one, two := testenv.NodeProgram(t, "one"), testenv.NodeProgram(t, "two")
	p := c.start(t, one)
	l := c.load(t)
	at := func(what string) { t.Log(time.Now().Format("05.000 "), what) }
	for range 3 {
		for _, next := range []string{two, one} {
			at("stop")
			if err := p.stop(syscall.SIGTERM); err != nil {
				t.Errorf("end by SIGTERM: %v", err)
			}
			time.Sleep(50 * time.Millisecond)
			at("start")
			p = c.start(t, next)
			at("started")
		}
		old := p
		at("start beside")
		p = c.launch(t, two) // both at once
		p.await(t, "another proxy programs this node")
		at("two endpoints")
		c.setEndpoints(rand.Perm(endpoints)[:2]...)
		time.Sleep(100 * time.Millisecond)
		at("stop the old one")
		old.stop(syscall.SIGTERM)
		at("four endpoints")
		c.setEndpoints(0, 1, 2, 3)
		p.await(t, "")
		at("started")
	}
	l.check(t, 300)
}

// TestCleanup: what is left behind is on demand taken away, all of it.
func TestCleanup(t *testing.T) {
	testenv.RequireRoot(t)
	c := newCluster(t)
	binary := testenv.NodeProgram(t, "one")
	p := c.start(t, binary)
	conn, err := c.client.Dial("tcp4", clusterIP, 20*time.Second)
	if err != nil {
		t.Fatalf("with the proxy: %v", err)
	}
	conn.Close()
	p.stop(syscall.SIGTERM)
	if conn, err = c.client.Dial("tcp4", nodePort, 20*time.Second); err != nil {
		t.Fatalf("after the proxy has ended: %v", err)
	}
	conn.Close()
	cmd := exec.Command(binary, "proxy", "--cleanup")
	var out []byte
	err = c.node.NS.Do(func() (err error) { out, err = cmd.CombinedOutput(); return err })
	if err != nil {
		t.Fatalf("--cleanup: %v\n%s", err, out)
	}
	if conn, err = c.client.Dial("tcp4", nodePort, 5*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("node port after --cleanup: %v, %v; want refused by the machine itself", conn, err)
	}
}
