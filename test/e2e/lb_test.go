package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/internal/lb/status"
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
