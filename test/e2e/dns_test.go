package e2e

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestNames is names as programs in Pods find them: through their resolv.conf,
// the Service kube-dns and the data plane, by glibc's resolver, Go's and dig.
func TestNames(t *testing.T) {
	const upstream = "127.0.0.1:5300"
	c := Up(t, "--nodes", "2", "--dns-upstream", upstream)
	stop := c.upstream(t, upstream)
	for _, f := range []string{"client.yaml", "web-host.yaml", "headless.yaml", "dual-stack.yaml", "externalname.yaml"} {
		c.example(t, f)
	}
	c.Apply(t, resolverPods)
	c.rolledOut(t, "deployment/web")
	c.rolledOut(t, "statefulset/db")
	for _, name := range []string{"client", "plain", "custom", "extended"} {
		Eventually(t, "Pod "+name, func() error {
			if !ready(c.pod(t, name)) {
				return errors.New("not ready")
			}
			return nil
		})
	}
	t.Run("service", c.testDNSService)
	t.Run("resolvers", c.testResolvers)
	t.Run("policies", c.testDNSPolicies)
	t.Run("as soon as the data plane", c.testNewEndpoint)
	t.Run("without upstream", func(t *testing.T) { c.testWithoutUpstream(t, stop) })
	t.Run("without a node", c.testDNSWithoutNode) // last: it disturbs
}

// resolverPods are Pods of each DNS policy beside ClusterFirst, and one that adds to that.
const resolverPods = `
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  dnsPolicy: Default
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: host, command: [sleep, infinity]}]
---
apiVersion: v1
kind: Pod
metadata: {name: custom}
spec:
  dnsPolicy: None
  dnsConfig: {nameservers: [192.0.2.53], searches: [corp.example], options: [{name: ndots, value: "2"}, {name: rotate}]}
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: host, command: [sleep, infinity]}]
---
apiVersion: v1
kind: Pod
metadata: {name: extended}
spec:
  dnsConfig: {searches: [corp.example], options: [{name: ndots, value: "3"}]}
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: host, command: [sleep, infinity]}]
`

// upstream is a DNS server of the machine's: www.example.org is there, other
// names are not. The function returned stops it.
func (c *Cluster) upstream(t *testing.T, address string) (stop func()) {
	t.Helper()
	s := &dns.Server{PacketConn: c.Host.ListenPacket(t, "udp4", address), Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		switch name := strings.ToLower(q.Question[0].Name); {
		case name != "www.example.org.":
			m.Rcode = dns.RcodeNameError
		case q.Question[0].Qtype == dns.TypeA:
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 300}, A: net.IPv4(192, 0, 2, 80)}}
		}
		w.WriteMsg(m)
	})}
	go s.ActivateAndServe()
	t.Cleanup(func() { s.Shutdown() })
	return func() {
		if err := s.Shutdown(); err != nil {
			t.Error(err)
		}
	}
}

// in runs a command in a Pod and returns what it printed, its lines sorted and
// joined by blanks.
func (c *Cluster) in(pod string, args ...string) (string, error) {
	out, err := c.Fairway(append([]string{"kubectl", "exec", pod, "--"}, args...)...)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	slices.Sort(lines)
	return strings.Join(strings.Fields(strings.Join(lines, " ")), " "), err
}

// testDNSService: every node serves, at the address that cluster DNS has by
// convention, and each is there for its own node first.
func (c *Cluster) testDNSService(t *testing.T) {
	svc, err := c.Client.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if svc.Spec.ClusterIP != "10.96.0.10" || len(svc.Spec.ClusterIPs) != 2 {
		t.Errorf("kube-dns has %v", svc.Spec.ClusterIPs)
	}
	list, err := c.Client.DiscoveryV1().EndpointSlices("kube-system").List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kube-dns"})
	if err != nil {
		t.Fatal(err)
	}
	nodes := map[string]bool{}
	for _, s := range list.Items {
		for _, e := range s.Endpoints {
			nodes[*e.NodeName] = true
			if e.Hints == nil || len(e.Hints.ForNodes) != 1 || e.Hints.ForNodes[0].Name != *e.NodeName {
				t.Errorf("endpoint of node %s has hints %v", *e.NodeName, e.Hints)
			}
		}
	}
	if len(nodes) != 2 {
		t.Errorf("nodes that serve names: %v", nodes)
	}
	for _, ip := range svc.Spec.ClusterIPs {
		for _, over := range []string{"+notcp", "+tcp"} {
			out, err := c.in("client", "dig", "+short", over, "+tries=5", "@"+ip, "kube-dns.kube-system.svc.cluster.local", "A")
			if err != nil || out != svc.Spec.ClusterIP {
				t.Errorf("dig %s @%s: %q, %v", over, ip, out, err)
			}
		}
	}
}

// testResolvers asks by all the resolvers that programs have.
func (c *Cluster) testResolvers(t *testing.T) {
	web, dual := c.getService(t, "web").Spec.ClusterIP, c.getService(t, "web-dual").Spec.ClusterIPs
	db := map[string]string{}
	for _, p := range c.pods(t, "app=db") {
		db[p.Name] = p.Status.PodIP
	}
	all := []string{db["db-0"], db["db-1"], db["db-2"]}
	slices.Sort(all)
	dashed := strings.ReplaceAll(db["db-1"], ".", "-")
	for _, tt := range []struct{ command, want string }{
		{"dig +short +search web", web},
		{"dig +short web.default.svc.cluster.local", web},
		{"dig +short AAAA web-dual.default.svc.cluster.local", dual[0]},
		{"dig +short SRV _http._tcp.web.default.svc.cluster.local", "0 100 80 web.default.svc.cluster.local."},
		{"dig +short -x " + web, "web.default.svc.cluster.local."},
		{"dig +short -x " + dual[0], "web-dual.default.svc.cluster.local."},
		{"dig +short -x " + db["db-1"], "db-1.db.default.svc.cluster.local."},
		{"dig +short db.default.svc.cluster.local", strings.Join(all, " ")},
		{"dig +short db-2.db.default.svc.cluster.local", db["db-2"]},
		{"dig +short " + dashed + ".default.pod.cluster.local", db["db-1"]},
		{"dig +short SRV _http._tcp.db.default.svc.cluster.local",
			"0 100 8080 db-0.db.default.svc.cluster.local. 0 100 8080 db-1.db.default.svc.cluster.local. 0 100 8080 db-2.db.default.svc.cluster.local."},
		{"dig +short wiki.default.svc.cluster.local", "192.0.2.80 www.example.org."},
		{"dig +short www.example.org", "192.0.2.80"},
		{"dig +short TXT dns-version.cluster.local", `"1.1.0"`},
		{"getent ahostsv4 www.example.org", "192.0.2.80 DGRAM 192.0.2.80 RAW 192.0.2.80 STREAM www.example.org"},
		{"getent hosts db-0.db", db["db-0"] + " db-0.db.default.svc.cluster.local"},
		{"getent hosts web.default", web + " web.default.svc.cluster.local"},
		{"getent hosts " + web, web + " web.default.svc.cluster.local"},
		{"getent ahostsv4 wiki", "192.0.2.80 DGRAM 192.0.2.80 RAW 192.0.2.80 STREAM www.example.org"},
	} {
		Eventually(t, tt.command, func() error {
			out, err := c.in("client", strings.Fields(tt.command)...)
			if err == nil && out != tt.want {
				err = fmt.Errorf("%q, want %q", out, tt.want)
			}
			return err
		})
	}
	for command, want := range map[string]string{
		"dig +noall +comments nope.default.svc.cluster.local":   "status: NXDOMAIN",
		"dig +noall +comments MX web.default.svc.cluster.local": "status: NOERROR",
	} {
		if out, err := c.in("client", strings.Fields(command)...); err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %q, %v, want %s", command, out, err, want)
		}
	}
	// Go's resolver: our own echo client is built without cgo.
	for _, name := range []string{"web", "web.default", "web.default.svc.cluster.local", "web-dual", "db:8080", "db-1.db:8080"} {
		c.answered(t, "http://"+name+"/")
	}
}

// answered asks once from inside.
func (c *Cluster) answered(t *testing.T, url string) {
	t.Helper()
	if got := c.inside(t, "-n", "1", url).Pods; len(got) != 1 {
		t.Errorf("%s is answered by %v", url, got)
	}
}

// testDNSPolicies reads what Pods are told about DNS.
func (c *Cluster) testDNSPolicies(t *testing.T) {
	for pod, want := range map[string]string{
		"client":   "nameserver 10.96.0.10 nameserver fd00:10:96::a options ndots:5 search default.svc.cluster.local svc.cluster.local cluster.local",
		"custom":   "nameserver 192.0.2.53 options ndots:2 rotate search corp.example",
		"extended": "nameserver 10.96.0.10 nameserver fd00:10:96::a options ndots:3 search default.svc.cluster.local svc.cluster.local cluster.local corp.example",
	} {
		if out, err := c.in(pod, "cat", "/etc/resolv.conf"); err != nil || out != want {
			t.Errorf("Pod %s:\n%q, %v\nwant\n%q", pod, out, err, want)
		}
	}
	if out, err := c.in("plain", "cat", "/etc/resolv.conf"); err != nil || strings.Contains(out, "10.96.0.10") || strings.Contains(out, "cluster.local") {
		t.Errorf("Pod plain has the cluster's DNS in spite of dnsPolicy Default: %q, %v", out, err)
	}
}

// testNewEndpoint gives a ClusterIP Service and a headless one the same
// endpoint, and sees when each shows it.
func (c *Cluster) testNewEndpoint(t *testing.T) {
	c.Apply(t, `
apiVersion: v1
kind: Service
metadata: {name: by-address}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: by-name}
spec: {clusterIP: None, ports: [{port: 80}]}
`)
	pod := c.pods(t, "app=web")[0].Status.PodIP
	url := "http://" + c.getService(t, "by-address").Spec.ClusterIP + "/"
	if out, err := c.in("client", "fairway", "echo", "get", "-n", "1", url); err == nil {
		t.Errorf("%s without an endpoint: %s", url, out)
	}
	node := internalIP(*c.node(t, c.pod(t, "client").Spec.NodeName))
	conn, err := c.Host.Dial("udp", net.JoinHostPort(node, "53"), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	w, err := c.Client.DiscoveryV1().EndpointSlices("default").Watch(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=by-name"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	port := int32(8080)
	for _, service := range []string{"by-address", "by-name"} {
		_, err := c.Client.DiscoveryV1().EndpointSlices("default").Create(t.Context(), &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: service, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{pod}}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-w.ResultChan():
	case <-time.After(waitLong):
		t.Fatal("no watch event")
	}
	event := time.Now()
	Eventually(t, "the endpoint has its name", func() error {
		return exchange(conn, "by-name.default.svc.cluster.local.", pod)
	})
	t.Logf("%s after the watch event the name has its address", time.Since(event))
	Eventually(t, "the endpoint is behind its address", func() error {
		_, err := c.in("client", "fairway", "echo", "get", "-n", "1", url)
		return err
	})
}

// exchange asks for a name's address and says what is wrong with the answer.
func exchange(conn net.Conn, name, want string) error {
	over := &dns.Conn{Conn: conn}
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if err := over.WriteMsg(new(dns.Msg).SetQuestion(name, dns.TypeA)); err != nil {
		return err
	}
	reply, err := over.ReadMsg()
	if err != nil {
		return err
	}
	if len(reply.Answer) != 1 || reply.Answer[0].(*dns.A).A.String() != want {
		return fmt.Errorf("%s %v, want %s", dns.RcodeToString[reply.Rcode], reply.Answer, want)
	}
	return nil
}

// testWithoutUpstream stops the machine's DNS server: what is known is told on,
// what is not fails fast, and the cluster's own names do not notice.
func (c *Cluster) testWithoutUpstream(t *testing.T, stop func()) {
	if out, err := c.in("client", "dig", "+short", "www.example.org"); err != nil || out != "192.0.2.80" {
		t.Fatalf("beforehand: %q, %v", out, err)
	}
	stop()
	out, err := c.in("client", "dig", "+tries=1", "+timeout=10", "other.example.org")
	if err != nil || !strings.Contains(out, "status: SERVFAIL") {
		t.Errorf("a name that nobody knows: %q, %v", out, err)
	}
	var took int
	if _, after, ok := strings.Cut(out, "Query time: "); !ok {
		t.Errorf("dig does not say how long it took: %q", out)
	} else if fmt.Sscan(after, &took); took > 2000 {
		t.Errorf("it took %d ms to fail, more than 2 s", took)
	}
	for name, want := range map[string]string{
		"www.example.org":               "192.0.2.80", // from the cache of this node's server
		"web.default.svc.cluster.local": c.getService(t, "web").Spec.ClusterIP,
	} {
		if out, err := c.in("client", "dig", "+short", name); err != nil || out != want {
			t.Errorf("%s: %q, %v, want %s", name, out, err, want)
		}
	}
}

// testDNSWithoutNode takes away the node whose server the client does not ask.
func (c *Cluster) testDNSWithoutNode(t *testing.T) {
	other := "node-1"
	if c.pod(t, "client").Spec.NodeName == other {
		other = "node-2"
	}
	if out, err := c.Fairway("node", "stop", other); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for range 10 {
		if out, err := c.in("client", "dig", "+short", "+tries=1", "web.default.svc.cluster.local"); err != nil || out != c.getService(t, "web").Spec.ClusterIP {
			t.Errorf("without %s: %q, %v", other, out, err)
		}
	}
}

func (c *Cluster) node(t *testing.T, name string) *corev1.Node {
	t.Helper()
	n, err := c.Client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
