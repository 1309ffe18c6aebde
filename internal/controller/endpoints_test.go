package controller

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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

var _ = v1.Service{}
