package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/internal/echo"
)

// TestWorkloads is what a person does with Deployments, StatefulSets,
// DaemonSets and Jobs, and what comes of it behind Services.
func TestWorkloads(t *testing.T) {
	c := Up(t, "--nodes", "3", "--zones", "a,b,c")
	c.example(t, "client.yaml")
	c.waitPods(t, "app!=none", 1)

	t.Run("deployment", c.testDeployment)
	t.Run("rolling without loss", c.testRolling)
	t.Run("statefulset", c.testStatefulSet)
	t.Run("daemonset", c.testDaemonSet)
	t.Run("job", c.testJob)
	t.Run("token", c.testToken)
	t.Run("unschedulable", c.testUnschedulable)
	t.Run("drain", c.testDrain)
	t.Run("debug", c.testDebug)
	t.Run("terminal", c.testTerminal)
	t.Run("node stop", c.testNodeStop) // last: it disturbs
}

// testToken: a Secret that asks for a ServiceAccount's token gets one.
func (c *Cluster) testToken(t *testing.T) {
	secrets := c.Client.CoreV1().Secrets("default")
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "default-token", Annotations: map[string]string{corev1.ServiceAccountNameKey: "default"}},
		Type:       corev1.SecretTypeServiceAccountToken,
	}
	if _, err := secrets.Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "the token", func() error {
		s, err := secrets.Get(t.Context(), secret.Name, metav1.GetOptions{})
		if err == nil && len(s.Data[corev1.ServiceAccountTokenKey]) == 0 {
			err = errors.New("it is not there")
		}
		return err
	})
}

// testDeployment: apply, scale, restart, undo.
func (c *Cluster) testDeployment(t *testing.T) {
	c.example(t, "web-host.yaml")
	c.rolledOut(t, "deployment/web")
	if n := len(c.inside(t, "-n", "60", "http://web/").Pods); n != 3 {
		t.Errorf("%d pods answered, want 3", n)
	}
	for _, replicas := range []int{5, 2, 3} {
		c.Kubectl(t, "scale", "deployment/web", "--replicas", strconv.Itoa(replicas))
		c.rolledOut(t, "deployment/web")
		Eventually(t, fmt.Sprintf("%d pods behind the service", replicas), func() error {
			if n := len(c.inside(t, "-n", "80", "http://web/").Pods); n != replicas {
				return fmt.Errorf("%d pods answer", n)
			}
			return nil
		})
	}
	before := c.podNames(t, "app=web")
	c.Kubectl(t, "rollout", "restart", "deployment/web")
	c.rolledOut(t, "deployment/web")
	for name := range c.waitPods(t, "app=web", 3) {
		if before[name] {
			t.Errorf("pod %s is from before the restart", name)
		}
	}
	// A new template that never gets ready changes nothing for clients, and is undone.
	c.Kubectl(t, "patch", "deployment/web", "--type=json", "-p", `[{"op":"replace","path":"/spec/template/spec/containers/0/command","value":["fairway","echo","--slow-start","1h"]}]`)
	Eventually(t, "a pod of the new template", func() error {
		if n := len(c.podNames(t, "app=web")); n < 4 {
			return fmt.Errorf("%d pods", n)
		}
		return nil
	})
	if out, err := c.Fairway("kubectl", "rollout", "status", "deployment/web", "--timeout=1s"); err == nil {
		t.Errorf("rollout status is content with pods that are not ready:\n%s", out)
	}
	if n := len(c.inside(t, "-n", "60", "http://web/").Pods); n != 3 {
		t.Errorf("%d pods answer while the new one is not ready, want the 3 old ones", n)
	}
	c.Kubectl(t, "rollout", "undo", "deployment/web")
	c.rolledOut(t, "deployment/web")
	c.waitPods(t, "app=web", 3)
}

// testRolling: new connections, 2,000 a second, and not one fails while the
// Pods are replaced, more and fewer.
func (c *Cluster) testRolling(t *testing.T) {
	c.example(t, "web-host.yaml")
	c.example(t, "clusterip.yaml") // its port 7 greets
	c.rolledOut(t, "deployment/web")
	svc, err := c.Client.CoreV1().Services("default").Get(t.Context(), "web-ports", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		tally echo.Tally
		err   error
	}
	loaded := make(chan result, 1)
	stop := c.startInside(t, func(out string, err error) {
		var r result
		if err != nil {
			r.err = fmt.Errorf("%w\n%s", err, out)
		}
		if e := json.Unmarshal([]byte(lastLine(out)), &r.tally); e != nil && r.err == nil {
			r.err = fmt.Errorf("%w in %q", e, out)
		}
		loaded <- r
	}, "-n", "0", "-for", "10m", "-rate", "2000", "-c", "64", "-tally", "tcp://"+net.JoinHostPort(svc.Spec.ClusterIP, "7"))
	time.Sleep(2 * time.Second) // the load is under way
	c.Kubectl(t, "rollout", "restart", "deployment/web")
	c.rolledOut(t, "deployment/web")
	c.Kubectl(t, "scale", "deployment/web", "--replicas=6")
	c.rolledOut(t, "deployment/web")
	c.Kubectl(t, "scale", "deployment/web", "--replicas=2")
	c.rolledOut(t, "deployment/web")
	c.waitPods(t, "app=web", 2)
	time.Sleep(time.Second)
	stop()
	select {
	case r := <-loaded:
		if r.tally.Requests == 0 {
			t.Fatalf("no requests: %v", r.err)
		}
		t.Logf("%d requests, %d failed, %d not begun for want of time, %d pods", r.tally.Requests, r.tally.Failed, r.tally.Late, len(r.tally.Pods))
		if r.tally.Failed > 0 {
			t.Errorf("%d of %d requests failed: %v", r.tally.Failed, r.tally.Requests, r.tally.Errors)
		}
		if len(r.tally.Pods) < 6 {
			t.Errorf("%d pods answered, want at least the 6 that there were at once", len(r.tally.Pods))
		}
	case <-time.After(waitLong):
		t.Fatal("the load did not end")
	}
}

// testStatefulSet: Pods with names that last, found in DNS by a headless
// Service.
func (c *Cluster) testStatefulSet(t *testing.T) {
	c.example(t, "headless.yaml")
	c.rolledOut(t, "statefulset/db")
	pods := c.waitPods(t, "app=db", 3)
	address := map[string]string{}
	for _, name := range []string{"db-0", "db-1", "db-2"} {
		if !pods[name] {
			t.Fatalf("no pod %s among %v", name, pods)
		}
		address[name] = c.pod(t, name).Status.PodIP
		if a := c.inside(t, "-n", "5", "http://"+name+".db:8080/"); a.Pods[name] != 5 {
			t.Errorf("%s.db is answered by %v", name, a.Pods)
		}
	}
	out := c.Kubectl(t, "exec", "client", "--", "getent", "ahostsv4", "db")
	for name, ip := range address {
		if !strings.Contains(out, ip) {
			t.Errorf("db does not resolve to %s of %s:\n%s", ip, name, out)
		}
	}
	// A replacement has the name, and another address.
	c.Kubectl(t, "delete", "pod", "db-1")
	c.rolledOut(t, "statefulset/db")
	Eventually(t, "db-1 under a new address", func() error {
		p := c.pod(t, "db-1")
		if !ready(p) || p.Status.PodIP == address["db-1"] {
			return fmt.Errorf("ready %v at %s", ready(p), p.Status.PodIP)
		}
		out := c.Kubectl(t, "exec", "client", "--", "getent", "ahostsv4", "db-1.db")
		if !strings.Contains(out, p.Status.PodIP) {
			return fmt.Errorf("DNS says %s", out)
		}
		return nil
	})
}

// testDaemonSet: one Pod on every node; with policy Local each node's own Pod
// answers, and sees the client's own address.
func (c *Cluster) testDaemonSet(t *testing.T) {
	c.example(t, "traffic-policies.yaml")
	c.rolledOut(t, "daemonset/edge")
	c.waitPods(t, "app=edge", 3)
	svc, err := c.Client.CoreV1().Services("default").Get(t.Context(), "edge", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(int(svc.Spec.Ports[0].NodePort))
	nodes, err := c.Client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes.Items {
		ip := internalIP(n)
		Eventually(t, n.Name+" answers with its own pod", func() error {
			for range 10 {
				body, err := c.Get("http://" + net.JoinHostPort(ip, port) + "/?format=json")
				if err != nil {
					return err
				}
				var a echo.Answer
				if err := json.Unmarshal([]byte(body), &a); err != nil {
					return err
				}
				client, _, _ := net.SplitHostPort(a.Client)
				if a.Node != n.Name || !onNodeNetwork(client) {
					return fmt.Errorf("answered by %s on %s, which sees %s", a.Pod, a.Node, a.Client)
				}
			}
			return nil
		})
	}
}

// onNodeNetwork: the machine is a neighbour of the nodes, and is seen as such.
func onNodeNetwork(ip string) bool { return ip == "172.30.0.1" }

func (c *Cluster) testJob(t *testing.T) {
	c.example(t, "web-host.yaml")
	c.rolledOut(t, "deployment/web")
	c.example(t, "job.yaml")
	c.Kubectl(t, "wait", "--for=condition=complete", "job/ask-web", "--timeout=2m")
	if n := strings.Count(c.Kubectl(t, "logs", "job/ask-web"), "pod=web-"); n != 100 {
		t.Errorf("the job's log has %d answers, want 100", n)
	}
}

// testUnschedulable: a Pod that fits nowhere says why.
func (c *Cluster) testUnschedulable(t *testing.T) {
	c.Apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: picky}
spec:
  nodeSelector: {disk: ssd}
  containers: [{name: c, image: host, command: [sleep, infinity]}]
`)
	defer c.Kubectl(t, "delete", "pod", "picky", "--wait=false")
	Eventually(t, "the reason in the pod's condition and an event", func() error {
		for _, cond := range c.pod(t, "picky").Status.Conditions {
			if cond.Type == corev1.PodScheduled && strings.Contains(cond.Message, "node affinity/selector") {
				if out := c.Kubectl(t, "describe", "pod", "picky"); !strings.Contains(out, "FailedScheduling") {
					return fmt.Errorf("no event in:\n%s", out)
				}
				return nil
			}
		}
		return fmt.Errorf("conditions %v", c.pod(t, "picky").Status.Conditions)
	})
}

// testNodeStop: a node loses power. Once that is noticed, no request goes
// there; its Pods come up elsewhere; and it comes back.
func (c *Cluster) testNodeStop(t *testing.T) {
	c.example(t, "web-host.yaml")
	c.Kubectl(t, "scale", "deployment/web", "--replicas=6")
	c.rolledOut(t, "deployment/web")
	client := c.pod(t, "client").Spec.NodeName
	victim := "node-1"
	if client == victim {
		victim = "node-2"
	}
	if out, err := c.Fairway("node", "stop", victim); err != nil {
		t.Fatalf("node stop: %v\n%s", err, out)
	}
	Eventually(t, victim+" is noticed", func() error {
		n, err := c.Client.CoreV1().Nodes().Get(t.Context(), victim, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
				return fmt.Errorf("it is still Ready")
			}
		}
		return nil
	})
	time.Sleep(2 * time.Second)
	lost := map[string]bool{}
	for _, p := range c.pods(t, "app=web") {
		if p.Spec.NodeName == victim {
			lost[p.Name] = true
		}
	}
	tally := c.inside(t, "-n", "500", "-c", "4", "-tally", "http://web/")
	if tally.Failed > 0 {
		t.Errorf("%d of %d requests failed: %v", tally.Failed, tally.Requests, tally.Errors)
	}
	for name := range tally.Pods {
		if lost[name] {
			t.Errorf("%s on the lost node answered", name)
		}
	}
	Eventually(t, "six ready pods on the other nodes", func() error {
		n := 0
		for _, p := range c.pods(t, "app=web") {
			if p.Spec.NodeName != victim && ready(&p) {
				n++
			}
		}
		if n != 6 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	if out, err := c.Fairway("node", "start", victim); err != nil {
		t.Fatalf("node start: %v\n%s", err, out)
	}
	Eventually(t, victim+" is back", func() error {
		n, err := c.Client.CoreV1().Nodes().Get(t.Context(), victim, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("conditions %v", n.Status.Conditions)
	})
}

// example applies a file of examples/.
func (c *Cluster) example(t *testing.T, file string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("../../examples", file))
	if err != nil {
		t.Fatal(err)
	}
	c.Apply(t, string(content))
}

// rolledOut waits as `kubectl rollout status` does.
func (c *Cluster) rolledOut(t *testing.T, what string) {
	t.Helper()
	c.Kubectl(t, "rollout", "status", what, "--timeout="+waitLong.String())
}

// inside runs `fairway echo get` in the Pod client; every request must be
// answered.
func (c *Cluster) inside(t *testing.T, args ...string) echo.Tally {
	t.Helper()
	out := c.Kubectl(t, append([]string{"exec", "client", "--", "fairway", "echo", "get", "-tally"}, args...)...)
	var tally echo.Tally
	if err := json.Unmarshal([]byte(lastLine(out)), &tally); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	return tally
}

// startInside is inside in the background, until the returned function ends
// it; done then gets what was printed.
func (c *Cluster) startInside(t *testing.T, done func(string, error), args ...string) (stop func()) {
	t.Helper()
	fairway, err := binary("fairway")
	if err != nil {
		t.Fatal(err)
	}
	// Pods of image "host" see the machine's files.
	pid := filepath.Join(t.TempDir(), "pid")
	shell := []string{"kubectl", "exec", "client", "--", "sh", "-c", `echo $$ > "$0" && exec "$@"`, pid, fairway, "echo", "get"}
	go func() { done(c.Fairway(append(shell, args...)...)) }()
	return func() {
		// On SIGTERM it ends with a tally.
		c.Kubectl(t, "exec", "client", "--", "sh", "-c", `kill -TERM "$(cat "$0")"`, pid)
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

func (c *Cluster) pods(t *testing.T, selector string) []corev1.Pod {
	t.Helper()
	list, err := c.Client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func (c *Cluster) podNames(t *testing.T, selector string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, p := range c.pods(t, selector) {
		names[p.Name] = true
	}
	return names
}

func (c *Cluster) pod(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	p, err := c.Client.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// waitPods waits until there are n Pods, all ready, and returns their names.
func (c *Cluster) waitPods(t *testing.T, selector string, n int) map[string]bool {
	t.Helper()
	var names map[string]bool
	Eventually(t, fmt.Sprintf("%d ready pods %s", n, selector), func() error {
		names = map[string]bool{}
		list := c.pods(t, selector)
		for _, p := range list {
			if ready(&p) {
				names[p.Name] = true
			}
		}
		if len(list) != n || len(names) != n {
			return fmt.Errorf("%d ready of %d", len(names), len(list))
		}
		return nil
	})
	return names
}

func ready(p *corev1.Pod) bool {
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}

func internalIP(n corev1.Node) string {
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			return a.Address
		}
	}
	return ""
}
