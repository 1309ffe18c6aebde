package controller

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// slices are a Service's EndpointSlices.
func (c *cluster) slices(ns, service string) []discovery.EndpointSlice {
	c.Helper()
	list, err := c.client.DiscoveryV1().EndpointSlices(ns).List(c.Context(), metav1.ListOptions{LabelSelector: discovery.LabelServiceName + "=" + service})
	c.must(err)
	return list.Items
}

// readyEndpoints says what differs from n ready endpoints, in the slices and
// in v1 Endpoints.
func (c *cluster) readyEndpoints(ns, service string, n int) error {
	got := 0
	for _, s := range c.slices(ns, service) {
		for _, ep := range s.Endpoints {
			if *ep.Conditions.Ready {
				got++
			}
		}
	}
	if got != n {
		return fmt.Errorf("%d ready endpoints in the slices, want %d", got, n)
	}
	ep, err := c.client.CoreV1().Endpoints(ns).Get(c.Context(), service, metav1.GetOptions{})
	if err != nil {
		return err
	}
	got = 0
	for _, s := range ep.Subsets {
		got += len(s.Addresses)
	}
	if got != n {
		return fmt.Errorf("%d ready addresses in v1 Endpoints, want %d", got, n)
	}
	return nil
}

// told is what a Service's slices say, one line for each endpoint, sorted:
// address/conditions (r, s, t)/node/zone/hints/ports.
func (c *cluster) told(ns, service string) string {
	c.Helper()
	var lines []string
	for _, s := range c.slices(ns, service) {
		var ports []string
		for _, p := range s.Ports {
			ports = append(ports, fmt.Sprint(*p.Port))
		}
		for _, ep := range s.Endpoints {
			conditions := ""
			for _, cond := range []struct {
				is *bool
				as string
			}{{ep.Conditions.Ready, "r"}, {ep.Conditions.Serving, "s"}, {ep.Conditions.Terminating, "t"}} {
				if cond.is != nil && *cond.is {
					conditions += cond.as
				}
			}
			hints := ""
			if ep.Hints != nil {
				for _, z := range ep.Hints.ForZones {
					hints += z.Name
				}
			}
			lines = append(lines, strings.Join([]string{ep.Addresses[0], conditions, ptr.Deref(ep.NodeName, ""), ptr.Deref(ep.Zone, ""), hints, strings.Join(ports, ",")}, "/"))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, " ")
}

// tells waits until a Service's slices say what is wanted.
func (c *cluster) tells(ns, service, want string) {
	c.Helper()
	c.eventually("endpoints of "+service, func() error {
		if got := c.told(ns, service); got != want {
			return fmt.Errorf("%q, want %q", got, want)
		}
		return nil
	})
}

func (c *cluster) namespace(name string) {
	c.Helper()
	_, err := c.client.CoreV1().Namespaces().Create(c.Context(), &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	c.must(err)
	c.ready(name)
}

// ready waits until Pods may be made in a namespace.
func (c *cluster) ready(name string) {
	c.Helper()
	c.eventually("service account", func() error {
		_, err := c.client.CoreV1().ServiceAccounts(name).Get(c.Context(), "default", metav1.GetOptions{})
		return err
	})
}

func (c *cluster) service(ns, name string, spec v1.ServiceSpec) {
	c.Helper()
	_, err := c.client.CoreV1().Services(ns).Create(c.Context(), &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	c.must(err)
}

// pod makes a Pod on a node, with an address and readiness.
func (c *cluster) pod(ns, name, app, node, ip string, ready bool) {
	c.Helper()
	template := podTemplate(map[string]string{"app": app})
	template.Spec.NodeName = node
	template.Spec.TerminationGracePeriodSeconds = ptr.To[int64](30)
	template.Spec.Containers[0].Ports = []v1.ContainerPort{{Name: "web", ContainerPort: 8080}}
	pod, err := c.client.CoreV1().Pods(ns).Create(c.Context(), &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: template.Labels}, Spec: template.Spec,
	}, metav1.CreateOptions{})
	c.must(err)
	c.setReady(pod, ip, ready)
}

func (c *cluster) patch(kind, ns, name, patch string) {
	c.Helper()
	var err error
	switch kind {
	case "service":
		_, err = c.client.CoreV1().Services(ns).Patch(c.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	case "pod":
		_, err = c.client.CoreV1().Pods(ns).Patch(c.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	case "node":
		_, err = c.client.CoreV1().Nodes().Patch(c.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	default:
		err = errors.New(kind)
	}
	c.must(err)
}

func TestEndpoints(t *testing.T) {
	c := startCluster(t)
	c.addNode("node-1", "zone-a")
	c.addNode("node-2", "zone-b")
	c.namespace("shop")
	selector := func(app string) map[string]string { return map[string]string{"app": app} }
	port := []v1.ServicePort{{Port: 80, TargetPort: intOrName("web")}}

	t.Run("readiness, labels, deletion, selector", func(t *testing.T) {
		c.service("shop", "life", v1.ServiceSpec{Selector: selector("life"), Ports: port})
		c.pod("shop", "life-1", "life", "node-1", "10.244.1.1", false)
		c.tells("shop", "life", "10.244.1.1//node-1/zone-a//8080")
		c.setReady(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "life-1"}}, "10.244.1.1", true)
		c.tells("shop", "life", "10.244.1.1/rs/node-1/zone-a//8080")
		c.eventually("v1 Endpoints", func() error { return c.readyEndpoints("shop", "life", 1) })
		for _, s := range c.slices("shop", "life") {
			if s.Annotations[v1.EndpointsLastChangeTriggerTime] == "" {
				t.Errorf("no trigger time on %s: %v", s.Name, s.Annotations)
			}
		}
		c.patch("pod", "shop", "life-1", `{"metadata":{"labels":{"app":"other"}}}`)
		c.tells("shop", "life", "")
		c.patch("pod", "shop", "life-1", `{"metadata":{"labels":{"app":"life"}}}`)
		c.tells("shop", "life", "10.244.1.1/rs/node-1/zone-a//8080")
		// A deleted Pod serves until it is gone, but is not ready.
		c.must(c.client.CoreV1().Pods("shop").Delete(c.Context(), "life-1", metav1.DeleteOptions{}))
		c.tells("shop", "life", "10.244.1.1/st/node-1/zone-a//8080")
		c.eventually("v1 Endpoints without it", func() error { return c.readyEndpoints("shop", "life", 0) })
		c.must(c.client.CoreV1().Pods("shop").Delete(c.Context(), "life-1", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}))
		c.tells("shop", "life", "")
		c.pod("shop", "life-2", "afterlife", "node-2", "10.244.2.1", true)
		c.patch("service", "shop", "life", `{"spec":{"selector":{"app":"afterlife"}}}`)
		c.tells("shop", "life", "10.244.2.1/rs/node-2/zone-b//8080")
	})

	t.Run("headless, not ready published", func(t *testing.T) {
		c.service("shop", "early", v1.ServiceSpec{Selector: selector("early"), ClusterIP: v1.ClusterIPNone, PublishNotReadyAddresses: true})
		c.pod("shop", "early-1", "early", "node-1", "10.244.1.10", false)
		c.tells("shop", "early", "10.244.1.10/r/node-1/zone-a//")
		c.eventually("v1 Endpoints", func() error { return c.readyEndpoints("shop", "early", 1) })
		ep, err := c.client.CoreV1().Endpoints("shop").Get(t.Context(), "early", metav1.GetOptions{})
		c.must(err)
		if _, ok := ep.Labels[v1.IsHeadlessService]; !ok {
			t.Errorf("labels %v", ep.Labels)
		}
	})

	t.Run("a node that comes late, and moves", func(t *testing.T) {
		c.service("shop", "late", v1.ServiceSpec{Selector: selector("late"), Ports: port})
		c.pod("shop", "late-1", "late", "node-late", "10.244.9.1", true)
		c.tells("shop", "late", "")
		c.addNode("node-late", "zone-c")
		c.tells("shop", "late", "10.244.9.1/rs/node-late/zone-c//8080")
		c.patch("node", "", "node-late", `{"metadata":{"labels":{"topology.kubernetes.io/zone":"zone-d"}}}`)
		c.tells("shop", "late", "10.244.9.1/rs/node-late/zone-d//8080")
	})

	t.Run("traffic distribution", func(t *testing.T) {
		c.service("shop", "near", v1.ServiceSpec{Selector: selector("near"), Ports: port, TrafficDistribution: ptr.To(v1.ServiceTrafficDistributionPreferSameZone)})
		c.pod("shop", "near-1", "near", "node-1", "10.244.1.20", true)
		c.pod("shop", "near-2", "near", "node-2", "10.244.2.20", true)
		c.tells("shop", "near", "10.244.1.20/rs/node-1/zone-a/zone-a/8080 10.244.2.20/rs/node-2/zone-b/zone-b/8080")
	})

	t.Run("what others break is mended", func(t *testing.T) {
		c.service("shop", "mended", v1.ServiceSpec{Selector: selector("mended"), Ports: port})
		c.pod("shop", "mended-1", "mended", "node-1", "10.244.1.30", true)
		const want = "10.244.1.30/rs/node-1/zone-a//8080"
		c.tells("shop", "mended", want)
		slices := c.client.DiscoveryV1().EndpointSlices("shop")
		c.must(slices.Delete(t.Context(), c.slices("shop", "mended")[0].Name, metav1.DeleteOptions{}))
		c.tells("shop", "mended", want)
		c.eventually("emptied", func() error {
			s := c.slices("shop", "mended")[0]
			s.Endpoints = nil
			_, err := slices.Update(t.Context(), &s, metav1.UpdateOptions{})
			return err
		})
		c.tells("shop", "mended", want)
		c.eventually("v1 Endpoints", func() error { return c.readyEndpoints("shop", "mended", 1) })
		c.must(c.client.CoreV1().Endpoints("shop").Delete(t.Context(), "mended", metav1.DeleteOptions{}))
		c.eventually("v1 Endpoints again", func() error { return c.readyEndpoints("shop", "mended", 1) })
		c.must(c.client.CoreV1().Services("shop").Delete(t.Context(), "mended", metav1.DeleteOptions{}))
		c.tells("shop", "mended", "")
		c.eventually("no v1 Endpoints", func() error {
			_, err := c.client.CoreV1().Endpoints("shop").Get(t.Context(), "mended", metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			return fmt.Errorf("still there (%v)", err)
		})
	})

	t.Run("hand-written Endpoints are mirrored", func(t *testing.T) {
		c.service("shop", "db", v1.ServiceSpec{Ports: []v1.ServicePort{{Port: 5432}}})
		byHand := c.client.CoreV1().Endpoints("shop")
		endpoints, err := byHand.Create(t.Context(), &v1.Endpoints{
			ObjectMeta: metav1.ObjectMeta{Name: "db"},
			Subsets:    []v1.EndpointSubset{{Addresses: []v1.EndpointAddress{{IP: "192.0.2.1"}, {IP: "2001:db8::1"}}, Ports: []v1.EndpointPort{{Port: 5432}}}},
		}, metav1.CreateOptions{})
		c.must(err)
		c.tells("shop", "db", "192.0.2.1/r////5432 2001:db8::1/r////5432")
		endpoints.Subsets[0].Addresses = []v1.EndpointAddress{{IP: "192.0.2.2"}}
		endpoints.Subsets[0].NotReadyAddresses = []v1.EndpointAddress{{IP: "192.0.2.3"}}
		endpoints, err = byHand.Update(t.Context(), endpoints, metav1.UpdateOptions{})
		c.must(err)
		c.tells("shop", "db", "192.0.2.2/r////5432 192.0.2.3/////5432")
		endpoints.Labels = map[string]string{discovery.LabelSkipMirror: "true"}
		endpoints, err = byHand.Update(t.Context(), endpoints, metav1.UpdateOptions{})
		c.must(err)
		c.tells("shop", "db", "")
		endpoints.Labels = nil
		_, err = byHand.Update(t.Context(), endpoints, metav1.UpdateOptions{})
		c.must(err)
		c.tells("shop", "db", "192.0.2.2/r////5432 192.0.2.3/////5432")
		c.must(byHand.Delete(t.Context(), "db", metav1.DeleteOptions{}))
		c.tells("shop", "db", "")
	})
}
