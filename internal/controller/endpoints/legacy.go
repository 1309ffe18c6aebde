package endpoints

import (
	"context"
	"fmt"
	"maps"
	"time"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/endpointslice"
	endpointsliceutil "k8s.io/endpointslice/util"
	utilnet "k8s.io/utils/net"
)

const (
	// endpointsManagedByLabel and endpointsManagedBy mark the Endpoints made
	// from a selector, as upstream's endpoints controller does.
	endpointsManagedByLabel = "endpoints.kubernetes.io/managed-by"
	endpointsManagedBy      = "endpoint-controller"
)

// syncLegacy makes the v1 Endpoints of one Service what its Pods say.
func (c *Controller) syncLegacy(ctx context.Context, key name) error {
	service, err := c.services.Services(key.Namespace).Get(key.Name)
	if apierrors.IsNotFound(err) {
		c.legacyTrigger.DeleteService(key.Namespace, key.Name)
		return c.deleteLegacy(ctx, key)
	}
	if err != nil {
		return err
	}
	if !selectsPods(service) {
		return nil
	}
	pods := c.podsOf(service)
	c.legacyPace.synced(key, len(pods), time.Now())
	// Computed on every pass, also one that writes nothing: it keeps state.
	trigger := c.legacyTrigger.ComputeEndpointLastChangeTriggerTime(service.Namespace, service, pods)

	current, err := c.endpoints.Endpoints(key.Namespace).Get(key.Name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	exists := err == nil
	if !exists {
		current = &v1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: key.Name, Namespace: key.Namespace}}
	}
	if c.legacyWritten.newer(key, current.ResourceVersion) {
		if tooLong := c.legacyFresh.await(key); tooLong {
			c.legacyWritten.forget(key)
		}
		c.legacyQueue.AddAfter(key, staleRetry) // at once when the cache sees it
		return nil
	}

	subsets := pack(subsetsFor(service, pods))
	cut := truncate(subsets)
	if exists && legacyUpToDate(current, service, subsets, cut) {
		return nil
	}
	wanted := current.DeepCopy()
	wanted.Subsets = subsets
	wanted.Labels = legacyLabels(service)
	if wanted.Annotations == nil {
		wanted.Annotations = map[string]string{}
	}
	delete(wanted.Annotations, v1.EndpointsLastChangeTriggerTime)
	if !trigger.IsZero() {
		wanted.Annotations[v1.EndpointsLastChangeTriggerTime] = trigger.UTC().Format(time.RFC3339Nano)
	}
	delete(wanted.Annotations, v1.EndpointsOverCapacity)
	if cut {
		wanted.Annotations[v1.EndpointsOverCapacity] = "truncated"
	}

	client := c.client.CoreV1().Endpoints(key.Namespace)
	if exists {
		wanted, err = client.Update(ctx, wanted, metav1.UpdateOptions{})
	} else {
		if service.DeletionTimestamp != nil {
			return nil
		}
		wanted, err = client.Create(ctx, wanted, metav1.CreateOptions{})
	}
	switch {
	case err == nil:
		c.legacyWritten.set(key, wanted.ResourceVersion)
		return nil
	case apierrors.HasStatusCause(err, v1.NamespaceTerminatingCause):
		return nil
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return err // somebody was quicker; the retry sees what they wrote
	default:
		c.recorder.Eventf(service, v1.EventTypeWarning, "FailedToUpdateEndpoint", "Failed to write Endpoints %s: %v", key, err)
		return fmt.Errorf("writing Endpoints %s: %w", key, err)
	}
}

func (c *Controller) deleteLegacy(ctx context.Context, key name) error {
	c.legacyWritten.forget(key)
	c.legacyFresh.arrived(key)
	c.legacyPace.synced(key, 0, time.Time{})
	if _, err := c.endpoints.Endpoints(key.Namespace).Get(key.Name); apierrors.IsNotFound(err) {
		return nil
	}
	err := c.client.CoreV1().Endpoints(key.Namespace).Delete(ctx, key.Name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting Endpoints %s, whose Service is gone: %w", key, err)
	}
	return nil
}

// queueLeftovers queues every Endpoints whose Service went while nobody
// watched. Endpoints that serve as a leader election's lock have no Service
// and stay.
func (c *Controller) queueLeftovers() error {
	all, err := c.endpoints.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, ep := range all {
		if _, lock := ep.Annotations[resourcelock.LeaderElectionRecordAnnotationKey]; lock {
			continue
		}
		if _, err := c.services.Services(ep.Namespace).Get(ep.Name); apierrors.IsNotFound(err) {
			c.legacyQueue.Add(name{Namespace: ep.Namespace, Name: ep.Name})
		}
	}
	return nil
}

// subsetsFor lists the Service's Pods as subsets of one address and one port
// each, to be packed. v1 Endpoints hold one family, the Service's first, and
// no terminating Pods unless the Service publishes what is not ready.
func subsetsFor(service *v1.Service, pods []*v1.Pod) []v1.EndpointSubset {
	var subsets []v1.EndpointSubset
	for _, pod := range pods {
		if !endpointsliceutil.ShouldPodBeInEndpoints(pod, service.Spec.PublishNotReadyAddresses) {
			continue
		}
		ip := firstAddress(service, pod)
		if ip == "" {
			continue // a Pod without an address of the Service's family
		}
		address := v1.EndpointAddress{
			IP:        ip,
			NodeName:  &pod.Spec.NodeName,
			TargetRef: &v1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		}
		if endpointsliceutil.ShouldSetHostname(pod, service) {
			address.Hostname = pod.Spec.Hostname
		}
		ready := service.Spec.PublishNotReadyAddresses || endpointsliceutil.IsPodReady(pod)
		add := func(ports []v1.EndpointPort) {
			s := v1.EndpointSubset{Ports: ports}
			if ready {
				s.Addresses = []v1.EndpointAddress{address}
			} else {
				s.NotReadyAddresses = []v1.EndpointAddress{address}
			}
			subsets = append(subsets, s)
		}
		if len(service.Spec.Ports) == 0 && service.Spec.ClusterIP == v1.ClusterIPNone {
			add(nil)
		}
		for i := range service.Spec.Ports {
			p := &service.Spec.Ports[i]
			number, err := endpointslice.FindPort(pod, p)
			if err != nil {
				continue // this Pod has no port of that name
			}
			add([]v1.EndpointPort{{Name: p.Name, Port: int32(number), Protocol: p.Protocol, AppProtocol: p.AppProtocol}})
		}
	}
	return subsets
}

// firstAddress is the Pod's address in the Service's first family, in
// canonical form, or "".
func firstAddress(service *v1.Service, pod *v1.Pod) string {
	wantIPv6 := false
	switch {
	case len(service.Spec.IPFamilies) > 0:
		wantIPv6 = service.Spec.IPFamilies[0] == v1.IPv6Protocol
	case service.Spec.ClusterIP != "" && service.Spec.ClusterIP != v1.ClusterIPNone:
		wantIPv6 = utilnet.IsIPv6String(service.Spec.ClusterIP)
	default:
		wantIPv6 = utilnet.IsIPv6String(pod.Status.PodIP)
	}
	for _, podIP := range pod.Status.PodIPs {
		if ip := utilnet.ParseIPSloppy(podIP.IP); ip != nil && utilnet.IsIPv6(ip) == wantIPv6 {
			return ip.String()
		}
	}
	return ""
}

// legacyLabels are the Service's, with the two that Endpoints carry.
func legacyLabels(service *v1.Service) map[string]string {
	l := maps.Clone(service.Labels)
	if l == nil {
		l = map[string]string{}
	}
	delete(l, v1.IsHeadlessService)
	if service.Spec.ClusterIP == "" || service.Spec.ClusterIP == v1.ClusterIPNone {
		l[v1.IsHeadlessService] = ""
	}
	l[endpointsManagedByLabel] = endpointsManagedBy
	return l
}

// legacyUpToDate says whether nothing needs writing. Resource versions of Pods
// and the trigger time do not count.
func legacyUpToDate(current *v1.Endpoints, service *v1.Service, subsets []v1.EndpointSubset, cut bool) bool {
	_, marked := current.Annotations[v1.EndpointsOverCapacity]
	if marked != cut || !sameLabels(current.Labels, legacyLabels(service)) {
		return false
	}
	return equalSubsets(current.Subsets, subsets) || equalSubsets(pack(current.Subsets), subsets)
}

func equalSubsets(a, b []v1.EndpointSubset) bool {
	return apiequality.Semantic.DeepEqual(a, b)
}
