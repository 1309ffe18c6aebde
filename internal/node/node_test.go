package node_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/utils/ptr"

	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/netns"
	"fairway.dev/fairway/internal/node"
	"fairway.dev/fairway/internal/testenv"
	"fairway.dev/fairway/internal/testenv/apitest"
)

// cluster is an API server and nodes, in the test's own network.
type cluster struct {
	kubernetes.Interface
	t      *testing.T
	api    *apiserver.Server
	admin  *rest.Config
	opts   node.Options
	stop   func()
	handle chan node.Handle
}

func newCluster(t *testing.T, nodes int, edits ...func(*node.Options)) *cluster {
	t.Helper()
	c := &cluster{t: t, handle: make(chan node.Handle, 100)}
	gw := netip.MustParseAddr("172.30.0.1")
	c.opts = node.Options{
		Prefix: fmt.Sprintf("n%d", os.Getpid()%10000000), Nodes: nodes, DataDir: t.TempDir(), Zones: []string{"a", "b"},
		ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, CRISocket: "none",
		OnNode: func(ctx context.Context, h node.Handle) {
			c.handle <- h
			<-ctx.Done()
		},
		Logger: apitest.Logger(t),
	}
	for _, edit := range edits {
		edit(&c.opts)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := node.Cleanup(ctx, c.opts); err != nil {
			t.Errorf("clean up: %v", err)
		}
		if left, _ := netns.List(c.opts.Prefix); len(left) > 0 {
			t.Errorf("namespaces left behind: %v", left)
		}
	})
	c.opts.ClientConfig = func(string) (*rest.Config, error) { return nil, fmt.Errorf("not yet") }
	nn, err := node.New(c.opts)
	if err != nil {
		t.Fatal(err)
	}
	c.api = apitest.Start(t, func(o *apiserver.Options) {
		o.Listen = []string{"127.0.0.1:0", gw.String() + ":0"}
		o.SANs = []string{gw.String()}
	})
	c.admin = apitest.Config(t, c.api, apiserver.Admin())
	c.Interface = apitest.Client(t, c.api, apiserver.Admin())
	c.opts.ClientConfig = func(name string) (*rest.Config, error) { return c.api.ClientConfig(apiserver.Node(name)) }
	c.opts.Control = c.admin
	c.opts.ServingCert, c.opts.ClientCAs = c.api.NodeServingCert, c.api.ClientCAs()
	port := c.admin.Host[strings.LastIndexByte(c.admin.Host, ':')+1:]
	c.opts.APIFromNodes = "https://" + netip.AddrPortFrom(gw, 0).Addr().String() + ":" + port
	nn.Close()
	c.start()
	t.Cleanup(func() { // before the API goes
		if c.stop != nil {
			c.stop()
		}
	})
	// Pods are refused until their ServiceAccount exists; its controller is not here.
	c.eventually("the default namespace", func() error {
		_, err := c.CoreV1().ServiceAccounts("default").Create(t.Context(), &v1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
	_, err = c.CoreV1().ConfigMaps("default").Create(t.Context(), &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kube-root-ca.crt"},
		Data: map[string]string{"ca.crt": string(c.api.CACert())}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	return c
}

// start runs the nodes until stop is called.
func (c *cluster) start() {
	c.t.Helper()
	nn, err := node.New(c.opts)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- nn.Run(ctx) }()
	c.stop = func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("run nodes: %v", err)
		}
		c.stop = nil
	}
}

func (c *cluster) eventually(what string, f func() error) {
	c.t.Helper()
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	c.t.Fatalf("%s: %v", what, err)
}

// pod creates a Pod on node-1 unless it says another node.
func (c *cluster) pod(name string, spec v1.PodSpec) *v1.Pod {
	c.t.Helper()
	if spec.NodeName == "" {
		spec.NodeName = "node-1"
	}
	for i := range spec.Containers {
		if spec.Containers[i].Name == "" {
			spec.Containers[i].Name = "c"
		}
		if spec.Containers[i].Image == "" {
			spec.Containers[i].Image = "host"
		}
	}
	for i := range spec.InitContainers {
		if spec.InitContainers[i].Image == "" {
			spec.InitContainers[i].Image = "host"
		}
	}
	p, err := c.CoreV1().Pods("default").Create(c.t.Context(), &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

// until waits for a Pod to be as it should.
func (c *cluster) until(name, what string, ok func(*v1.Pod) bool) *v1.Pod {
	c.t.Helper()
	var last *v1.Pod
	for deadline := time.Now().Add(90 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		p, err := c.CoreV1().Pods("default").Get(c.t.Context(), name, metav1.GetOptions{})
		if err != nil {
			c.t.Fatalf("Pod %s: %v", name, err)
		}
		if ok(p) {
			return p
		}
		last = p
	}
	events, _ := c.CoreV1().Events("default").List(context.Background(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + name})
	for _, e := range events.Items {
		c.t.Logf("event %s: %s", e.Reason, e.Message)
	}
	c.t.Fatalf("Pod %s: never %s; its status is %+v", name, what, last.Status)
	return nil
}

func (c *cluster) gone(name string) {
	c.t.Helper()
	c.eventually("Pod "+name+" gone", func() error {
		_, err := c.CoreV1().Pods("default").Get(c.t.Context(), name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("still there: %v", err)
	})
}

func (c *cluster) delete(name string) {
	c.t.Helper()
	if err := c.CoreV1().Pods("default").Delete(c.t.Context(), name, metav1.DeleteOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func ready(p *v1.Pod) bool {
	for _, cond := range p.Status.Conditions {
		if cond.Type == v1.PodReady {
			return cond.Status == v1.ConditionTrue
		}
	}
	return false
}

func ended(p *v1.Pod) bool {
	return p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed
}

func (c *cluster) logs(name string, o v1.PodLogOptions) string {
	c.t.Helper()
	b, err := c.CoreV1().Pods("default").GetLogs(name, &o).DoRaw(c.t.Context())
	if err != nil {
		return "error: " + err.Error()
	}
	return string(b)
}

// get asks an HTTP server from the machine.
func get(addr string) (string, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get("http://" + addr)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

func sh(script string) []string { return []string{"sh", "-c", script} }

func TestPods(t *testing.T) {
	if !testenv.Inside(t, nil) {
		return
	}
	c := newCluster(t, 2)

	c.eventually("nodes", func() error {
		nodes, err := c.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		if err != nil || len(nodes.Items) != 2 {
			return fmt.Errorf("%d nodes, %v", len(nodes.Items), err)
		}
		n := nodes.Items[0]
		if len(n.Spec.PodCIDRs) != 2 || len(n.Status.Addresses) != 3 || n.Labels[v1.LabelTopologyZone] != "a" {
			return fmt.Errorf("node %+v", n)
		}
		return nil
	})

	t.Run("runs and answers", func(t *testing.T) {
		c.pod("web", v1.PodSpec{Containers: []v1.Container{{
			Command:        []string{"python3", "-m", "http.server", "8080", "--bind", "::", "--directory", "/etc"},
			ReadinessProbe: &v1.Probe{ProbeHandler: v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: "/hostname", Port: portOf(8080)}}}}}})
		p := c.until("web", "ready", ready)
		if p.Status.Phase != v1.PodRunning || len(p.Status.PodIPs) != 2 || p.Status.HostIP != "172.30.0.11" {
			t.Errorf("status %+v", p.Status)
		}
		for _, ip := range p.Status.PodIPs {
			if _, err := get(netip.AddrPortFrom(netip.MustParseAddr(ip.IP), 8080).String() + "/hostname"); err != nil {
				t.Error(err)
			}
		}
		c.delete("web")
		c.gone("web")
	})
	t.Run("runs to completion", func(t *testing.T) {
		c.pod("ok", v1.PodSpec{RestartPolicy: v1.RestartPolicyNever, Containers: []v1.Container{{Command: sh("echo done; printf 'last words' > /dev/termination-log")}}})
		p := c.until("ok", "ended", ended)
		if p.Status.Phase != v1.PodSucceeded || p.Status.ContainerStatuses[0].State.Terminated.Message != "last words" {
			t.Errorf("status %+v", p.Status)
		}
		c.pod("bad", v1.PodSpec{RestartPolicy: v1.RestartPolicyNever, Containers: []v1.Container{{Command: sh("exit 4")}}})
		p = c.until("bad", "ended", ended)
		if p.Status.Phase != v1.PodFailed || p.Status.ContainerStatuses[0].State.Terminated.ExitCode != 4 {
			t.Errorf("status %+v", p.Status)
		}
		c.delete("ok")
		c.gone("ok")
	})
}

func TestKubelet(t *testing.T) {
	if !testenv.Inside(t, nil) {
		return
	}
	c := newCluster(t, 1)
	c.pod("talker", v1.PodSpec{TerminationGracePeriodSeconds: ptr.To(int64(1)), Containers: []v1.Container{
		{Name: "one", Command: sh("echo hello; echo oops >&2; exec python3 -m http.server 8080 --bind 0.0.0.0 --directory /etc"), Env: []v1.EnvVar{{Name: "A", Value: "b"}},
			ReadinessProbe: &v1.Probe{ProbeHandler: v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: portOf(8080)}}}},
		{Name: "two", Command: sh("while read l; do echo got $l; done"), Stdin: true},
		{Name: "three", Command: sh("n=0; while :; do n=$((n+1)); echo line $n; sleep 0.1; done")},
	}})
	c.until("talker", "ready", ready)

	t.Run("logs", func(t *testing.T) {
		c.eventually("log", func() error {
			if got := c.logs("talker", v1.PodLogOptions{Container: "one"}); !strings.Contains(got, "hello\n") || !strings.Contains(got, "oops\n") {
				return fmt.Errorf("log %q", got)
			}
			return nil
		})
		if got := c.logs("talker", v1.PodLogOptions{Container: "one", TailLines: ptr.To(int64(1))}); strings.Count(got, "\n") != 1 {
			t.Errorf("one line asked for: %q", got)
		}
		stream, err := c.CoreV1().Pods("default").GetLogs("talker", &v1.PodLogOptions{Container: "three", Follow: true, Timestamps: true}).Stream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		buf, got := make([]byte, 1024), ""
		for !strings.Contains(got, " line 3\n") {
			n, err := stream.Read(buf)
			if err != nil {
				t.Fatalf("%v after %q", err, got)
			}
			got += string(buf[:n])
		}
		if _, err := time.Parse(time.RFC3339Nano, strings.Fields(got)[0]); err != nil {
			t.Errorf("no timestamp: %v", err)
		}
	})
	for _, protocol := range []string{"websocket", "SPDY"} {
		t.Run("exec over "+protocol, func(t *testing.T) {
			out, errOut, err := c.exec(protocol, "talker", "one", strings.NewReader("in"), sh("cat; hostname; echo $A; echo e >&2; exit 3"))
			var exit interface{ ExitStatus() int }
			if !errors.As(err, &exit) || exit.ExitStatus() != 3 {
				t.Errorf("error %v, want exit status 3", err)
			}
			if out != "intalker\nb\n" || errOut != "e\n" {
				t.Errorf("stdout %q, stderr %q", out, errOut)
			}
		})
	}
	t.Run("attach", func(t *testing.T) {
		req := c.CoreV1().RESTClient().Post().Resource("pods").Namespace("default").Name("talker").SubResource("attach").
			VersionedParams(&v1.PodAttachOptions{Container: "two", Stdin: true, Stdout: true}, scheme.ParameterCodec)
		ex, err := remotecommand.NewWebSocketExecutor(c.admin, "GET", req.URL().String())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		w := &until{want: "got word", found: cancel}
		r, pw := io.Pipe()
		go io.WriteString(pw, "word\n")                                             //nolint:errcheck
		ex.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: r, Stdout: w}) //nolint:errcheck // ended by cancel
		if !w.ok() {
			t.Errorf("got %q", w.text())
		}
	})
	t.Run("port-forward", func(t *testing.T) {
		rt, up, err := spdy.RoundTripperFor(c.admin)
		if err != nil {
			t.Fatal(err)
		}
		url := c.CoreV1().RESTClient().Post().Resource("pods").Namespace("default").Name("talker").SubResource("portforward").URL()
		stop, ready := make(chan struct{}), make(chan struct{})
		defer close(stop)
		pf, err := portforward.New(spdy.NewDialer(up, &http.Client{Transport: rt}, "POST", url), []string{"0:8080"}, stop, ready, io.Discard, os.Stderr)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if err := pf.ForwardPorts(); err != nil {
				t.Errorf("forward ports: %v", err)
			}
		}()
		<-ready
		ports, err := pf.GetPorts()
		if err != nil {
			t.Fatal(err)
		}
		c.eventually("forwarded", func() error {
			got, err := get(fmt.Sprintf("127.0.0.1:%d/passwd", ports[0].Local))
			if err == nil && !strings.Contains(got, "root:") {
				err = fmt.Errorf("got %q", got)
			}
			return err
		})
	})
	t.Run("strangers stay out", func(t *testing.T) {
		cfg, err := c.api.ClientConfig(apiserver.Identity{User: "mallory"})
		if err != nil {
			t.Fatal(err)
		}
		cfg.Host = "https://172.30.0.11:10250"
		client, err := rest.HTTPClientFor(cfg)
		if err != nil {
			t.Fatal(err)
		}
		r, err := client.Get(cfg.Host + "/pods")
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != http.StatusForbidden {
			t.Errorf("status %d, want 403", r.StatusCode)
		}
	})
}

// exec runs a command in a container over one of kubectl's protocols.
func (c *cluster) exec(protocol, pod, container string, in io.Reader, cmd []string) (stdout, stderr string, err error) {
	c.t.Helper()
	req := c.CoreV1().RESTClient().Post().Resource("pods").Namespace("default").Name(pod).SubResource("exec").
		VersionedParams(&v1.PodExecOptions{Container: container, Command: cmd, Stdin: in != nil, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	var ex remotecommand.Executor
	if protocol == "SPDY" {
		ex, err = remotecommand.NewSPDYExecutor(c.admin, "POST", req.URL())
	} else {
		ex, err = remotecommand.NewWebSocketExecutor(c.admin, "GET", req.URL().String())
	}
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	var out, errOut strings.Builder
	err = ex.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Stderr: &errOut})
	return out.String(), errOut.String(), err
}

// The process goes and a new one comes: running Pods notice nothing, and what
// ended or was deleted meanwhile is seen to.
func TestTakeOver(t *testing.T) {
	if !testenv.Inside(t, nil) {
		return
	}
	c := newCluster(t, 1)
	loop := sh("n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.05; done")
	c.pod("stays", v1.PodSpec{Containers: []v1.Container{{Command: loop}}})
	c.pod("leaves", v1.PodSpec{Containers: []v1.Container{{Command: loop}}})
	c.pod("dies", v1.PodSpec{Containers: []v1.Container{{Command: sh("echo $$$$; exec sleep 1000")}}})
	before := c.until("stays", "ready", ready)
	c.until("leaves", "ready", ready)
	c.until("dies", "ready", ready)
	c.pod("done", v1.PodSpec{RestartPolicy: v1.RestartPolicyNever, Containers: []v1.Container{{Command: sh("echo result")}}})
	c.until("done", "ended", ended)
	var pid int
	c.eventually("the process number", func() error {
		log := c.logs("dies", v1.PodLogOptions{})
		if _, err := fmt.Sscan(log, &pid); err != nil {
			return fmt.Errorf("log %q: %w", log, err)
		}
		return nil
	})
	c.stop()
	if err := c.CoreV1().Pods("default").Delete(t.Context(), "leaves", metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0))}); err != nil {
		t.Fatal(err)
	}
	unix.Kill(pid, unix.SIGKILL) //nolint:errcheck
	c.start()
	c.until("dies", "restarted", func(p *v1.Pod) bool { return ready(p) && p.Status.ContainerStatuses[0].RestartCount == 1 })
	after := c.until("stays", "ready", ready)
	if a, b := before.Status.ContainerStatuses[0], after.Status.ContainerStatuses[0]; a.ContainerID != b.ContainerID || b.RestartCount != 0 || before.Status.PodIP != after.Status.PodIP {
		t.Errorf("was %+v\nis  %+v", before.Status, after.Status)
	}
	if p := c.until("done", "ended", ended); p.Status.ContainerStatuses[0].State.Terminated.ExitCode != 0 || p.Status.Phase != v1.PodSucceeded {
		t.Errorf("status %+v", p.Status)
	}
	c.eventually("the log of one that had ended", func() error {
		if got := c.logs("done", v1.PodLogOptions{}); got != "result\n" {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	c.eventually("the log goes on", func() error {
		first := c.logs("stays", v1.PodLogOptions{TailLines: ptr.To(int64(1))})
		time.Sleep(200 * time.Millisecond)
		if second := c.logs("stays", v1.PodLogOptions{TailLines: ptr.To(int64(1))}); first == second || !strings.HasPrefix(second, "tick ") {
			return fmt.Errorf("last line %q, then %q", first, second)
		}
		return nil
	})
	c.eventually("no namespace of the deleted Pod", func() error {
		if l, _ := netns.List(c.opts.Prefix + "-p-"); len(l) != 2 {
			return fmt.Errorf("namespaces %v", l)
		}
		return nil
	})
}

func TestPower(t *testing.T) {
	if !testenv.Inside(t, nil) {
		return
	}
	c := newCluster(t, 2)
	c.pod("p", v1.PodSpec{NodeName: "node-2", Containers: []v1.Container{{Command: sh("exec sleep 1000")}}})
	p := c.until("p", "ready", ready)
	power := func(p node.Power) {
		t.Helper()
		if err := node.SetPower(t.Context(), c, "node-2", p); err != nil {
			t.Fatal(err)
		}
	}
	reach := func(want bool) {
		t.Helper()
		c.eventually(fmt.Sprintf("reachable: %t", want), func() error {
			conn, err := net.DialTimeout("tcp", p.Status.PodIP+":1", 300*time.Millisecond)
			if err == nil {
				conn.Close()
			}
			// A refusal is an answer.
			if got := errors.Is(err, unix.ECONNREFUSED); got != want {
				return fmt.Errorf("dial: %v", err)
			}
			return nil
		})
	}
	reach(true)
	power(node.Cut)
	reach(false)
	power(node.On)
	reach(true)
	power(node.Off)
	c.eventually("no namespaces", func() error {
		if l, _ := netns.List(c.opts.Prefix + "-p-2-"); len(l) != 0 {
			return fmt.Errorf("namespaces %v", l)
		}
		return nil
	})
	power(node.On)
	again := c.until("p", "started again", func(q *v1.Pod) bool { return ready(q) && q.Status.ContainerStatuses[0].RestartCount == 1 })
	if again.Status.PodIP == p.Status.PodIP {
		t.Errorf("address %s was used again at once", p.Status.PodIP)
	}
}

// The machine itself as the node.
func TestHost(t *testing.T) {
	wan := func(h *testenv.Host) {
		world := testenv.NewHost(t, "world")
		h.Connect(t, "wan", world, "lan")
		h.AddAddr(t, "wan", "172.30.0.1/24") // where newCluster has its API
		h.AddRoute(t, "default4", "172.30.0.254")
	}
	if !testenv.Inside(t, wan) {
		return
	}
	c := newCluster(t, 1, func(o *node.Options) {
		o.Host = true
		o.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")}
	})
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	name = strings.ToLower(name)
	serve := func(port string) []v1.Container {
		return []v1.Container{{Command: []string{"python3", "-m", "http.server", port, "--directory", "/etc"}}}
	}
	c.pod("pod", v1.PodSpec{NodeName: name, TerminationGracePeriodSeconds: ptr.To(int64(1)), Containers: serve("80")})
	c.pod("host", v1.PodSpec{NodeName: name, HostNetwork: true, TerminationGracePeriodSeconds: ptr.To(int64(1)), Containers: serve("8080")})
	p, h := c.until("pod", "ready", ready), c.until("host", "ready", ready)
	if h.Status.PodIP != "172.30.0.1" {
		t.Errorf("address of a hostNetwork Pod: %s", h.Status.PodIP)
	}
	for _, addr := range []string{p.Status.PodIP + ":80", h.Status.PodIP + ":8080"} {
		c.eventually("answer", func() error {
			_, err := get(addr + "/hostname")
			return err
		})
	}
}
