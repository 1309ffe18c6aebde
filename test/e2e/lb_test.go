package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/internal/lb/status"
	"fairway.dev/fairway/internal/netns"
	"fairway.dev/fairway/internal/testenv"
)

// TestLoadBalancer: the machine reaches a Service by its external address with
// no route added, in both families, and goes on to when the node that answers
// for it loses its cable.
func TestLoadBalancer(t *testing.T) {
	c := Up(t, "--nodes", "3")
	c.example(t, "web-host.yaml")
	c.Apply(t, `
apiVersion: v1
kind: Service
metadata: {name: lb}
spec:
  type: LoadBalancer
  allocateLoadBalancerNodePorts: false
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: lb-local}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
`)
	c.rolledOut(t, "deployment/web")
	lb, local := c.addresses(t, "lb", 2), c.addresses(t, "lb-local", 1)
	for _, a := range append(lb, local...) {
		Eventually(t, "answer from "+a, func() error {
			_, err := c.Get("http://" + net.JoinHostPort(a, "80") + "/")
			return err
		})
	}
	if body, err := c.Get("http://" + local[0] + "/"); err != nil || !strings.Contains(body, "172.30.0.1") {
		t.Errorf("policy Local: the Pod does not see the machine's address: %v\n%s", err, body)
	}

	var owner string
	Eventually(t, "somebody announces "+lb[0], func() (err error) {
		owner, err = c.announcer(lb[0])
		return err
	})
	out, err := c.Fairway("lb", "status")
	if err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out)

	// Both parts are to be watched from the node, as in a cluster.
	for port, line := range map[string]string{
		"7955": `metallb_speaker_announced{ip="` + lb[0] + `",node="` + owner + `",protocol="layer2",service="default/lb"} 1`,
		"7956": `metallb_allocator_addresses_in_use_total{pool="default"} 3`,
	} {
		if got := c.metrics(t, owner, port); !strings.Contains(got, line+"\n") {
			t.Errorf("port %s of %s does not show %s:\n%s", port, owner, line, got)
		}
	}

	if out, err := c.Fairway("node", "cut", owner); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	start := time.Now()
	client := c.HTTPClient(200 * time.Millisecond)
	Eventually(t, "another node announces "+lb[0], func() error {
		now, err := c.announcer(lb[0])
		if err == nil && now == owner {
			return fmt.Errorf("still %s", now)
		}
		return err
	})
	Eventually(t, "answer from "+lb[0], func() error {
		resp, err := client.Get("http://" + lb[0] + "/")
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
	t.Logf("%s lost its cable: another node announces %s, as everybody can see, after %s", owner, lb[0], time.Since(start))
}

// metrics are what a node serves on a port of its loopback.
func (c *Cluster) metrics(t *testing.T, node, port string) string {
	t.Helper()
	ns, err := netns.Open(c.prefix(t) + "-" + node)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DialContext: ns.DialContext, DisableKeepAlives: true}}
	resp, err := client.Get("http://127.0.0.1:" + port + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// addresses waits until a Service has n external addresses.
func (c *Cluster) addresses(t *testing.T, service string, n int) (out []string) {
	t.Helper()
	Eventually(t, "addresses of Service "+service, func() error {
		svc, err := c.Client.CoreV1().Services("default").Get(t.Context(), service, metav1.GetOptions{})
		if err != nil {
			return err
		}
		out = nil
		for _, in := range svc.Status.LoadBalancer.Ingress {
			out = append(out, in.IP)
		}
		if len(out) != n {
			return fmt.Errorf("has %v", out)
		}
		return nil
	})
	return out
}

// announcer asks `fairway lb status` who announces an address.
func (c *Cluster) announcer(address string) (string, error) {
	out, err := c.Fairway("lb", "status", "--output", "json")
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	var r status.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	for _, a := range r.Addresses {
		if a.Address == address && a.Node != "" {
			return a.Node, nil
		}
	}
	return "", fmt.Errorf("nobody:\n%s", out)
}

// TestLoadBalancerOnHost: where the machine itself is the node, a Service gets
// the machine's address if its port is free there, and a neighbour reaches it.
func TestLoadBalancerOnHost(t *testing.T) {
	testenv.RequireRoot(t)
	const machine, neighbour = "198.51.100.1", "198.51.100.2"
	c := &Cluster{
		Host:    testenv.NewHost(t, "machine"),
		DataDir: filepath.Join(t.TempDir(), "fairway"),
		args:    []string{"--host"},
	}
	lan := testenv.NewHost(t, "lan")
	c.Host.Connect(t, "eth0", lan, "eth0")
	c.Host.AddAddr(t, "eth0", machine+"/24")
	lan.AddAddr(t, "eth0", neighbour+"/24")
	c.Host.AddRoute(t, "default4", neighbour)
	t.Cleanup(func() {
		if t.Failed() {
			c.dumpLog(t)
		}
		if out, err := c.Fairway("down", "--purge", "--data-dir", c.DataDir); err != nil {
			t.Errorf("fairway down: %v\n%s", err, out)
		}
	})
	taken := c.Host.Listen(t, "tcp4", machine+":8081")
	c.Start(t)
	c.example(t, "web-host.yaml")
	service := `
apiVersion: v1
kind: Service
metadata: {name: lb-%[1]d}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: %[1]d, targetPort: http}]
`
	c.Apply(t, fmt.Sprintf(service, 80))
	c.Apply(t, fmt.Sprintf(service, 8081))
	c.rolledOut(t, "deployment/web")
	if a := c.addresses(t, "lb-80", 1); a[0] != machine {
		t.Fatalf("the Service has %v, not the machine's address", a)
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: lan.NS.DialContext, DisableKeepAlives: true}}
	get := func(port int) error {
		resp, err := client.Get(fmt.Sprintf("http://%s:%d/", machine, port))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && !strings.Contains(string(body), neighbour) {
			err = fmt.Errorf("the Pod does not see the neighbour's address:\n%s", body)
		}
		return err
	}
	Eventually(t, "answer to a neighbour", func() error { return get(80) })
	Eventually(t, "reason why port 8081 cannot be had", func() error {
		out, err := c.Fairway("lb", "status")
		if err == nil && !strings.Contains(out, "PortClash") {
			err = fmt.Errorf("not there:\n%s", out)
		}
		return err
	})
	taken.Close()
	c.addresses(t, "lb-8081", 1)
	Eventually(t, "answer on the port that is free now", func() error { return get(8081) })
}
