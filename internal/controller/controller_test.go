package controller

import (
	"context"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/scheduler"
	"fairway.dev/fairway/internal/testenv/apitest"
)

const waitLong = 2 * time.Minute

// cluster is an API server with all controllers and a scheduler, and no node
// agents: Pods get as far as a node's name.
type cluster struct {
	*testing.T
	client kubernetes.Interface
	config *rest.Config // an administrator's
	// clock makes every transition's time differ from the one before: the API
	// keeps whole seconds.
	clock time.Time
}

func startCluster(t *testing.T) *cluster {
	s := apitest.Start(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() {
		done <- Run(ctx, Options{
			ClientConfig: func(user string, groups ...string) (*rest.Config, error) {
				return s.ClientConfig(apiserver.Identity{User: user, Groups: groups})
			},
			RootCA:   s.CACert(),
			TokenKey: s.TokenKey(),
			Logger:   apitest.Logger(t),
		})
	}()
	config, err := s.ClientConfig(apiserver.Scheduler())
	if err != nil {
		t.Fatal(err)
	}
	go func() { done <- scheduler.Run(ctx, scheduler.Options{ClientConfig: config, Logger: apitest.Logger(t)}) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("ended with %v", err)
				}
			case <-time.After(waitLong):
				t.Errorf("did not stop within %v", waitLong)
			}
		}
	})
	return &cluster{t, apitest.Client(t, s, apiserver.Admin()), apitest.Config(t, s, apiserver.Admin()), time.Now()}
}

func (c *cluster) eventually(what string, f func() error) {
	c.Helper()
	deadline := time.Now().Add(waitLong)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.Fatalf("%s: not within %v: %v", what, waitLong, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (c *cluster) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// addNode registers a Node that is ready, as an agent would.
func (c *cluster) addNode(name, zone string) {
	c.Helper()
	node, err := c.client.CoreV1().Nodes().Create(c.Context(), &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1.LabelTopologyZone: zone, v1.LabelHostname: name}},
	}, metav1.CreateOptions{})
	c.must(err)
	c.eventually("node status", func() error {
		node, err = c.client.CoreV1().Nodes().Get(c.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		node.Status.Conditions = []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionTrue, LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}}
		node.Status.Allocatable = v1.ResourceList{
			v1.ResourceCPU: resource.MustParse("4"), v1.ResourceMemory: resource.MustParse("8Gi"), v1.ResourcePods: resource.MustParse("110"),
		}
		node.Status.Capacity = node.Status.Allocatable
		_, err = c.client.CoreV1().Nodes().UpdateStatus(c.Context(), node, metav1.UpdateOptions{})
		return err
	})
}

// setReady gives a Pod an address and readiness, as an agent would.
func (c *cluster) setReady(pod *v1.Pod, ip string, ready bool) {
	c.Helper()
	c.clock = c.clock.Add(time.Second)
	transition := metav1.NewTime(c.clock)
	status := v1.ConditionFalse
	if ready {
		status = v1.ConditionTrue
	}
	c.eventually("pod status", func() error {
		p, err := c.client.CoreV1().Pods(pod.Namespace).Get(c.Context(), pod.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		p.Status.Phase = v1.PodRunning
		p.Status.PodIP, p.Status.PodIPs = ip, []v1.PodIP{{IP: ip}}
		conditions := []v1.PodCondition{{Type: v1.PodReady, Status: status, LastTransitionTime: transition}}
		for _, cond := range p.Status.Conditions {
			if cond.Type != v1.PodReady {
				conditions = append(conditions, cond)
			}
		}
		p.Status.Conditions = conditions
		_, err = c.client.CoreV1().Pods(pod.Namespace).UpdateStatus(c.Context(), p, metav1.UpdateOptions{})
		return err
	})
}

func intOrName(name string) intstr.IntOrString { return intstr.FromString(name) }

func podTemplate(labels map[string]string) v1.PodTemplateSpec {
	return v1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec: v1.PodSpec{
			TerminationGracePeriodSeconds: new(int64),
			Containers:                    []v1.Container{{Name: "c", Image: "host", Command: []string{"true"}}},
		},
	}
}

// From a Deployment to Pods with nodes, their Service's endpoints, a roll-out
// of a new template, and all gone with the namespace.
func TestDeploymentBecomesEndpoints(t *testing.T) {
	c := startCluster(t)
	ctx := t.Context()
	const ns = "shop"
	c.namespace(ns)
	c.eventually("the namespace's root CA", func() error {
		_, err := c.client.CoreV1().ConfigMaps(ns).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		return err
	})

	labels := map[string]string{"app": "web"}
	_, err := c.client.CoreV1().Services(ns).Create(ctx, &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       v1.ServiceSpec{Selector: labels, Ports: []v1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	c.must(err)
	replicas := int32(3)
	_, err = c.client.AppsV1().Deployments(ns).Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: podTemplate(labels)},
	}, metav1.CreateOptions{})
	c.must(err)

	// Without a node, the Pods say why they wait.
	pods := func() []v1.Pod {
		list, err := c.client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: "app=web"})
		c.must(err)
		return list.Items
	}
	c.eventually("three pods that say why they are not scheduled", func() error {
		list := pods()
		if len(list) != 3 {
			return fmt.Errorf("%d pods", len(list))
		}
		for _, p := range list {
			for _, cond := range p.Status.Conditions {
				if cond.Type == v1.PodScheduled && cond.Status == v1.ConditionFalse && cond.Reason == v1.PodReasonUnschedulable && cond.Message != "" {
					return nil
				}
			}
		}
		return fmt.Errorf("conditions %v", list[0].Status.Conditions)
	})

	c.addNode("node-1", "zone-a")
	c.eventually("all pods on the node", func() error {
		for _, p := range pods() {
			if p.Spec.NodeName != "node-1" {
				return fmt.Errorf("%s is on %q", p.Name, p.Spec.NodeName)
			}
		}
		return nil
	})
	for i, p := range pods() {
		c.setReady(&p, fmt.Sprintf("10.244.1.%d", i+1), true)
	}
	c.eventually("three ready endpoints", func() error { return c.readyEndpoints(ns, "web", 3) })
	c.eventually("the deployment's status", func() error {
		d, err := c.client.AppsV1().Deployments(ns).Get(ctx, "web", metav1.GetOptions{})
		if err == nil && d.Status.ReadyReplicas != 3 {
			err = fmt.Errorf("%d ready", d.Status.ReadyReplicas)
		}
		return err
	})

	// Deleted, it takes its ReplicaSet and Pods with it (garbage collector).
	policy := metav1.DeletePropagationBackground
	c.must(c.client.AppsV1().Deployments(ns).Delete(ctx, "web", metav1.DeleteOptions{PropagationPolicy: &policy}))
	c.eventually("no pods, no endpoints", func() error {
		if n := len(pods()); n > 0 {
			return fmt.Errorf("%d pods", n)
		}
		return c.readyEndpoints(ns, "web", 0)
	})
	c.must(c.client.CoreV1().Namespaces().Delete(ctx, ns, metav1.DeleteOptions{}))
	c.eventually("no namespace", func() error {
		_, err := c.client.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("still there (%v)", err)
	})
}
