package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/internal/echo"
)

// TestExamples applies every example at once, as "kubectl apply -f examples/"
// does, and sees that each does what its comments say. (Those with
// StatefulSets, DaemonSets and Jobs are seen more closely in TestWorkloads.)
func TestExamples(t *testing.T) {
	c := Up(t, "--nodes", "3", "--zones", "a,b,c")
	checks := map[string]func(*testing.T){
		"web-host.yaml":                   c.testWebHost,
		"web-nginx.yaml":                  c.testWebNginx,
		"clusterip.yaml":                  c.testClusterIP,
		"nodeport.yaml":                   c.testNodePort,
		"loadbalancer.yaml":               func(t *testing.T) { c.testLoadBalancer(t, "web-lb") },
		"loadbalancer-source-ranges.yaml": func(t *testing.T) { c.testLoadBalancer(t, "web-lb-restricted") },
		"externalname.yaml":               c.testExternalName,
		"headless.yaml":                   c.testHeadless,
		"without-selector.yaml":           c.testWithoutSelector,
		"dual-stack.yaml":                 c.testDualStack,
		"session-affinity.yaml":           c.testSessionAffinity,
		"traffic-policies.yaml":           c.testTrafficPolicies,
		"client.yaml":                     func(*testing.T) {}, // the others ask from it
		"job.yaml":                        c.testJob,
	}
	files, err := filepath.Glob("../../examples/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"apply"}
	for _, f := range files {
		if checks[filepath.Base(f)] == nil {
			t.Errorf("%s is not checked here", filepath.Base(f))
		}
		path, err := filepath.Abs(f)
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, "-f", path)
	}
	if len(files) != len(checks) {
		t.Errorf("%d examples, %d checks", len(files), len(checks))
	}
	c.Kubectl(t, args...)
	c.rolledOut(t, "deployment/web")
	Eventually(t, "the client", func() error {
		if !ready(c.pod(t, "client")) {
			return fmt.Errorf("not ready")
		}
		return nil
	})
	for _, f := range files {
		if check := checks[filepath.Base(f)]; check != nil {
			t.Run(filepath.Base(f), check)
		}
	}
}

func (c *Cluster) getService(t *testing.T, name string) *corev1.Service {
	t.Helper()
	svc, err := c.Client.CoreV1().Services("default").Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return svc
}

// answeredBy asks from inside, several times, and wants that many Pods.
func (c *Cluster) answeredBy(t *testing.T, url string, pods int) {
	t.Helper()
	if got := c.inside(t, "-n", "60", url).Pods; len(got) != pods {
		t.Errorf("%s is answered by %v, want %d pods", url, got, pods)
	}
}

// outside asks from the machine until an answer comes.
func (c *Cluster) outside(t *testing.T, url string) echo.Answer {
	t.Helper()
	var a echo.Answer
	Eventually(t, url, func() error {
		body, err := c.Get(url + "?format=json")
		if err != nil {
			return err
		}
		return json.Unmarshal([]byte(body), &a)
	})
	return a
}

func (c *Cluster) testWebHost(t *testing.T) {
	c.answeredBy(t, "http://web/", 3)
	c.answeredBy(t, "http://web.default.svc.cluster.local/", 3)
	c.answeredBy(t, "http://"+c.getService(t, "web").Spec.ClusterIP+"/", 3)
}

// testWebNginx: without a container runtime the Pods say why they wait; with
// one they may run.
func (c *Cluster) testWebNginx(t *testing.T) {
	Eventually(t, "a word from the nginx pods", func() error {
		for _, p := range c.pods(t, "app=nginx") {
			if ready(&p) {
				return nil
			}
			for _, s := range p.Status.ContainerStatuses {
				if s.State.Waiting != nil && s.State.Waiting.Message != "" {
					t.Logf("%s: %s", s.State.Waiting.Reason, s.State.Waiting.Message)
					return nil
				}
			}
		}
		return fmt.Errorf("nothing yet")
	})
}

func (c *Cluster) testClusterIP(t *testing.T) {
	ip := c.getService(t, "web-ports").Spec.ClusterIP
	c.answeredBy(t, "http://"+ip+"/", 3)
	c.answeredBy(t, "tcp://"+ip+":7", 3)
}

func (c *Cluster) testNodePort(t *testing.T) {
	port := strconv.Itoa(int(c.getService(t, "web-nodeport").Spec.Ports[0].NodePort))
	if port != "30080" {
		t.Errorf("node port %s", port)
	}
	nodes, err := c.Client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes.Items {
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				c.outside(t, "http://"+net.JoinHostPort(a.Address, port)+"/")
			}
		}
	}
}

func (c *Cluster) testLoadBalancer(t *testing.T, name string) {
	var ip string
	Eventually(t, "an address for "+name, func() error {
		ingress := c.getService(t, name).Status.LoadBalancer.Ingress
		if len(ingress) == 0 {
			return fmt.Errorf("pending")
		}
		ip = ingress[0].IP
		return nil
	})
	c.outside(t, "http://"+net.JoinHostPort(ip, "80")+"/")
}

// query asks a node's DNS server from the machine.
func (c *Cluster) query(t *testing.T, name string, kind uint16) []dns.RR {
	t.Helper()
	nodes, err := c.Client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var answer []dns.RR
	Eventually(t, "the name "+name, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		conn, err := c.Host.NS.DialContext(ctx, "tcp", net.JoinHostPort(internalIP(nodes.Items[0]), "53"))
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		over := &dns.Conn{Conn: conn}
		if err := over.WriteMsg(new(dns.Msg).SetQuestion(name, kind)); err != nil {
			return err
		}
		reply, err := over.ReadMsg()
		if err != nil {
			return err
		}
		if answer = reply.Answer; len(answer) == 0 {
			return fmt.Errorf("no answer: %s", dns.RcodeToString[reply.Rcode])
		}
		return nil
	})
	return answer
}

func (c *Cluster) testExternalName(t *testing.T) {
	answer := c.query(t, "wiki.default.svc.cluster.local.", dns.TypeCNAME)
	if cname, ok := answer[0].(*dns.CNAME); !ok || cname.Target != "www.example.org." {
		t.Errorf("wiki is %v", answer)
	}
}

func (c *Cluster) testHeadless(t *testing.T) {
	c.rolledOut(t, "statefulset/db")
	Eventually(t, "three addresses", func() error {
		if n := len(c.query(t, "db.default.svc.cluster.local.", dns.TypeA)); n != 3 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	if srv := c.query(t, "_http._tcp.db.default.svc.cluster.local.", dns.TypeSRV); len(srv) != 3 {
		t.Errorf("SRV records %v", srv)
	}
}

// testWithoutSelector: the controllers leave what was written by hand alone.
func (c *Cluster) testWithoutSelector(t *testing.T) {
	slices, err := c.Client.DiscoveryV1().EndpointSlices("default").List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=legacy"})
	if err != nil {
		t.Fatal(err)
	}
	if len(slices.Items) != 1 || slices.Items[0].Name != "legacy-1" || len(slices.Items[0].Endpoints) != 2 {
		t.Errorf("slices %v", slices.Items)
	}
	if a := c.query(t, "legacy.default.svc.cluster.local.", dns.TypeA); len(a) != 1 {
		t.Errorf("legacy is %v", a)
	}
}

func (c *Cluster) testDualStack(t *testing.T) {
	dual, six := c.getService(t, "web-dual"), c.getService(t, "web-ipv6")
	if ips := dual.Spec.ClusterIPs; len(ips) != 2 || !strings.Contains(ips[0], ":") || strings.Contains(ips[1], ":") {
		t.Errorf("web-dual has %v, want IPv6 and IPv4 in this order", ips)
	}
	if ips := six.Spec.ClusterIPs; len(ips) != 1 || !strings.Contains(ips[0], ":") {
		t.Errorf("web-ipv6 has %v", ips)
	}
	for _, ip := range append(dual.Spec.ClusterIPs, six.Spec.ClusterIPs...) {
		c.answeredBy(t, "http://"+net.JoinHostPort(ip, "80")+"/", 3)
	}
}

func (c *Cluster) testSessionAffinity(t *testing.T) {
	c.answeredBy(t, "http://"+c.getService(t, "web-sticky").Spec.ClusterIP+"/", 1)
}

func (c *Cluster) testTrafficPolicies(t *testing.T) {
	c.testDaemonSet(t)
	home := c.pod(t, "client").Spec.NodeName
	for service, how := range map[string]string{"edge-agent": "internalTrafficPolicy Local", "edge-near": "PreferSameZone"} {
		pods := c.inside(t, "-n", "30", "http://"+service+"/").Pods
		for name := range pods {
			if p := c.pod(t, name); p.Spec.NodeName != home {
				t.Errorf("%s (%s) asked from %s is answered by %s on %s", service, how, home, name, p.Spec.NodeName)
			}
		}
	}
}
