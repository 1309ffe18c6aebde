package lb

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"

	"fairway.dev/fairway/api/v1alpha1"
	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/testenv"
	"fairway.dev/fairway/internal/testenv/apitest"
)

// limit is how long any one thing may take on a busy machine.
const limit = time.Minute

// vips is what pools here give out. Every node takes it for its own, in place
// of a data plane.
const vips = "192.0.2.128/25"

// lan is a client and nodes on one Ethernet segment, and an API server that
// all of them reach on their loopback.
type lan struct {
	t       *testing.T
	server  *apiserver.Server
	admin   kubernetes.Interface
	pools   *v1alpha1.Client
	client  *testenv.Host
	nodes   []*testenv.Host
	program string
	api     string // host:port
}

func newLAN(t *testing.T, nodes int) *lan {
	t.Helper()
	testenv.RequireRoot(t)
	l := &lan{t: t, server: apitest.Start(t), client: testenv.NewHost(t, "client"), program: testenv.NodeProgram(t, "lb")}
	config := apitest.Config(t, l.server, apiserver.Admin())
	u, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	l.api = u.Host
	l.admin = apitest.Client(t, l.server, apiserver.Admin())
	if l.pools, err = v1alpha1.NewClient(config); err != nil {
		t.Fatal(err)
	}
	l.client.AddBridge(t, "br0")
	l.client.AddAddr(t, "br0", "192.0.2.1/24")
	for i := range nodes {
		l.addNode(i)
	}
	return l
}

func nodeName(i int) string { return fmt.Sprint("node-", i) }

func (l *lan) addNode(i int) {
	t := l.t
	h := testenv.NewHost(t, fmt.Sprint("n", i))
	port, ip := fmt.Sprint("port", i), fmt.Sprintf("192.0.2.%d", 10+i)
	h.Connect(t, "eth0", l.client, port)
	l.client.AddPort(t, "br0", port)
	h.AddAddr(t, "eth0", ip+"/24")
	// The kernel answers ARP only for what the interface has.
	h.Sysctl(t, "net/ipv4/conf/all/arp_ignore", "1")
	_, dst, err := net.ParseCIDR(vips)
	if err != nil {
		t.Fatal(err)
	}
	lo, err := h.NL.LinkByName("lo")
	if err == nil {
		err = h.NL.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Type: 2, Table: 255, Scope: netlink.SCOPE_HOST})
	}
	if err != nil {
		t.Fatal(err)
	}
	ln := h.Listen(t, "tcp4", "0.0.0.0:80")
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, nodeName(i))
			c.Close()
		}
	}()
	api := h.Listen(t, "tcp4", l.api)
	go func() {
		for {
			c, err := api.Accept()
			if err != nil {
				return
			}
			go l.relay(c)
		}
	}()
	node, err := l.admin.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(i)}}, metav1.CreateOptions{})
	if err == nil {
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}
		_, err = l.admin.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	l.nodes = append(l.nodes, h)
}

// relay connects a node's connection with the API server.
func (l *lan) relay(c net.Conn) {
	defer c.Close()
	s, err := net.Dial("tcp", l.api)
	if err != nil {
		return
	}
	defer s.Close()
	go func() {
		io.Copy(s, c) //nolint:errcheck
		s.Close()
	}()
	io.Copy(c, s) //nolint:errcheck
}

// apply puts what deploy/lb/lb.yaml has into the cluster and returns the Pods of
// its Deployment and its DaemonSet.
func (l *lan) apply() (controller, announcer corev1.PodSpec) {
	t := l.t
	t.Helper()
	client, err := dynamic.NewForConfig(apitest.Config(t, l.server, apiserver.Admin()))
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("../../deploy/lb/lb.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		var o unstructured.Unstructured
		if err := yaml.UnmarshalStrict([]byte(doc), &o.Object); err != nil {
			t.Fatal(err)
		}
		gvk := o.GroupVersionKind()
		var template struct {
			Spec struct{ Template corev1.PodTemplateSpec }
		}
		if err := yaml.Unmarshal([]byte(doc), &template); err != nil {
			t.Fatal(err)
		}
		switch gvk.Kind {
		case "Deployment":
			controller = template.Spec.Template.Spec
		case "DaemonSet":
			announcer = template.Spec.Template.Spec
		}
		gvr := schema.GroupVersionResource{Group: gvk.Group, Version: gvk.Version, Resource: strings.ToLower(gvk.Kind) + "s"}
		var resource dynamic.ResourceInterface = client.Resource(gvr)
		if ns := o.GetNamespace(); ns != "" {
			resource = client.Resource(gvr).Namespace(ns)
		}
		if _, err := resource.Create(t.Context(), &o, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}); err != nil {
			t.Fatalf("%s %s: %v", gvk.Kind, o.GetName(), err)
		}
	}
	return controller, announcer
}

// kubeconfig writes a file by which a service account reaches the API, with its
// rights and no others.
func (l *lan) kubeconfig(account string) string {
	l.t.Helper()
	c := apitest.Config(l.t, l.server, apiserver.Admin())
	file := filepath.Join(l.t.TempDir(), "kubeconfig")
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{"c": {Server: c.Host, CertificateAuthorityData: c.CAData, TLSServerName: c.ServerName}},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{"u": {
			ClientCertificateData: c.CertData, ClientKeyData: c.KeyData,
			Impersonate: "system:serviceaccount:kube-system:" + account, ImpersonateGroups: []string{"system:serviceaccounts", "system:authenticated"},
		}},
		Contexts: map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}}, CurrentContext: "x",
	}, file)
	if err == nil {
		err = os.Chmod(file, 0o644) // containers read it as whom they run as
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return file
}

// process is a running fairway-node lb.
type process struct {
	cmd  *exec.Cmd
	host *testenv.Host
	port string
	done chan struct{}
	err  error
	mu   sync.Mutex
	log  bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// begin starts a command on a host; it is killed at the test's end, by kill.
func (l *lan) begin(h *testenv.Host, port string, cmd *exec.Cmd, kill func()) *process {
	l.t.Helper()
	p := &process{cmd: cmd, host: h, port: port, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p, p
	if err := h.NS.Do(cmd.Start); err != nil {
		l.t.Fatal(err)
	}
	go func() { p.err = cmd.Wait(); close(p.done) }()
	l.t.Cleanup(func() {
		if kill != nil {
			kill()
		} else {
			cmd.Process.Signal(syscall.SIGKILL) //nolint:errcheck
		}
		<-p.done
		if l.t.Failed() {
			l.t.Logf("%v:\n%s", cmd.Args, p.text())
		}
	})
	return p
}

// announcer and controller start the parts as processes on a node.
func (l *lan) announcer(i int) *process {
	l.t.Helper()
	cmd := exec.Command(l.program, "lb", "--controller=false", "--kubeconfig", l.kubeconfig("fairway-announcer"), "--node-name", nodeName(i))
	return l.begin(l.nodes[i], "7955", cmd, nil)
}

func (l *lan) controller(i int) *process {
	l.t.Helper()
	cmd := exec.Command(l.program, "lb", "--announce=false", "--kubeconfig", l.kubeconfig("fairway-lb"), "--lease-duration=3s")
	return l.begin(l.nodes[i], "7956", cmd, nil)
}

// kill is kill -9.
func (p *process) kill() {
	p.cmd.Process.Signal(syscall.SIGKILL) //nolint:errcheck
	<-p.done
}

// get asks the process on its node's own network.
func (p *process) get(path string) (int, string) {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, address string) (net.Conn, error) {
			return p.host.Dial(network, address, 5*time.Second)
		},
	}}
	r, err := c.Get("http://127.0.0.1:" + p.port + path)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return 0, err.Error()
	}
	return r.StatusCode, string(b)
}

func (p *process) shows(line string) bool {
	_, body := p.get("/metrics")
	return strings.Contains("\n"+body, "\n"+line)
}

func (l *lan) until(what string, ok func() bool) {
	l.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("%s: not after %s", what, limit)
		}
	}
}

func (l *lan) ready(list ...*process) {
	l.t.Helper()
	for _, p := range list {
		l.until(fmt.Sprint(p.cmd.Args, " is ready"), func() bool {
			select {
			case <-p.done:
				l.t.Fatalf("%v ended: %v\n%s", p.cmd.Args, p.err, p.text())
			default:
			}
			code, _ := p.get("/readyz")
			return code == 200
		})
		if code, body := p.get("/healthz"); code != 200 {
			l.t.Errorf("%v: /healthz: %d %s", p.cmd.Args, code, body)
		}
	}
}

func (l *lan) pool(name string, addresses ...string) {
	l.t.Helper()
	l.until("pool "+name, func() bool { // the controller installs the definition
		_, err := l.pools.IPPools().Create(l.t.Context(), &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.IPPoolSpec{Addresses: addresses}}, metav1.CreateOptions{})
		return err == nil
	})
}

func (l *lan) service(name string) {
	l.t.Helper()
	class := v1alpha1.LoadBalancerClass
	_, err := l.admin.CoreV1().Services("default").Create(l.t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class, AllocateLoadBalancerNodePorts: new(bool),
			Ports: []corev1.ServicePort{{Port: 80}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
}

// addresses are what Services have, by name. No address may be there twice.
func (l *lan) addresses() map[string]string {
	l.t.Helper()
	list, err := l.admin.CoreV1().Services("default").List(l.t.Context(), metav1.ListOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	out, taken := map[string]string{}, map[string]string{}
	for _, svc := range list.Items {
		for _, in := range svc.Status.LoadBalancer.Ingress {
			if other := taken[in.IP]; other != "" {
				l.t.Errorf("%s has the address %s of %s", svc.Name, in.IP, other)
			}
			out[svc.Name], taken[in.IP] = in.IP, svc.Name
		}
	}
	return out
}

// ask returns which node answers the client.
func (l *lan) ask(vip string, timeout time.Duration) (string, error) {
	c, err := l.client.Dial("tcp", net.JoinHostPort(vip, "80"), timeout)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(timeout)) //nolint:errcheck
	b, err := io.ReadAll(c)
	if err == nil && len(b) == 0 {
		err = io.ErrUnexpectedEOF
	}
	return string(b), err
}

// answered waits until a node answers that is fit.
func (l *lan) answered(vip string, fit func(string) bool) (node string) {
	l.t.Helper()
	l.until("answer from "+vip, func() bool {
		var err error
		node, err = l.ask(vip, 250*time.Millisecond)
		return err == nil && fit(node)
	})
	return node
}
