package e2e

import (
	"fmt"
	"strings"
	"testing"

	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// testDrain: a budget that allows no disruption keeps Pods where they are, and
// one that allows some lets them move off their node.
func (c *Cluster) testDrain(t *testing.T) {
	c.example(t, "web-host.yaml")
	c.Kubectl(t, "scale", "deployment/web", "--replicas=3")
	c.rolledOut(t, "deployment/web")
	c.waitPods(t, "app=web", 3)
	budget := func(least int) {
		c.Apply(t, fmt.Sprintf(`
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec:
  minAvailable: %d
  selector: {matchLabels: {app: web}}
`, least))
		Eventually(t, fmt.Sprintf("a budget that allows %d", 3-least), func() error {
			b, err := c.Client.PolicyV1().PodDisruptionBudgets("default").Get(t.Context(), "web", metav1.GetOptions{})
			if err == nil && (b.Status.ObservedGeneration != b.Generation || b.Status.CurrentHealthy != 3 || b.Status.DisruptionsAllowed != int32(3-least)) {
				err = fmt.Errorf("status %+v", b.Status)
			}
			return err
		})
	}
	victim := c.pods(t, "app=web")[0]
	node := victim.Spec.NodeName
	evict := func() error {
		return c.Client.PolicyV1().Evictions("default").Evict(t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: victim.Name}})
	}
	drain := func(timeout string) (string, error) {
		// Not the bare Pod that other tests ask from.
		return c.Fairway("kubectl", "drain", node, "--pod-selector=app=web", "--timeout="+timeout)
	}
	t.Cleanup(func() { c.Kubectl(t, "uncordon", node) })

	budget(3)
	if err := evict(); !apierrors.IsTooManyRequests(err) {
		t.Errorf("eviction against the budget: %v, want 429", err)
	}
	out, err := drain("6s")
	if err == nil || !strings.Contains(out, "would violate the pod's disruption budget") {
		t.Errorf("drain against the budget: %v\n%s", err, out)
	}
	if p := c.pod(t, victim.Name); p.DeletionTimestamp != nil || !ready(p) {
		t.Errorf("the Pod that was to stay: %+v", p.Status)
	}

	budget(2)
	if out, err := drain("90s"); err != nil {
		t.Fatalf("drain: %v\n%s", err, out)
	}
	c.rolledOut(t, "deployment/web")
	c.waitPods(t, "app=web", 3)
	for _, p := range c.pods(t, "app=web") {
		if p.Spec.NodeName == node {
			t.Errorf("Pod %s is on %s, which was drained", p.Name, node)
		}
	}
	c.Kubectl(t, "delete", "poddisruptionbudget/web")
	if err := evict(); !apierrors.IsNotFound(err) {
		t.Errorf("eviction of a Pod that has gone: %v, want 404", err)
	}
}

// testDebug: `kubectl debug` of a running Pod, and of a node.
func (c *Cluster) testDebug(t *testing.T) {
	c.Kubectl(t, "debug", "client", "--image=host", "--container=look", "--", "sh", "-c", "hostname; exit 4")
	Eventually(t, "the ephemeral container's end", func() error {
		for _, s := range c.pod(t, "client").Status.EphemeralContainerStatuses {
			if s.Name == "look" && s.State.Terminated != nil && s.State.Terminated.ExitCode == 4 {
				return nil
			}
		}
		return fmt.Errorf("status %+v", c.pod(t, "client").Status.EphemeralContainerStatuses)
	})
	if got := c.Kubectl(t, "logs", "client", "-c", "look"); got != "client\n" {
		t.Errorf("log %q", got)
	}
	if p := c.pod(t, "client"); !ready(p) {
		t.Errorf("the Pod is not ready any more: %+v", p.Status)
	}
}
