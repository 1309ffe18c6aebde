package endpoints

import (
	"context"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"
	endpointsliceutil "k8s.io/endpointslice/util"
)

const (
	// slicesManagedBy and mirrorsManagedBy are upstream's names in the
	// managed-by label, so that slices change hands without being made anew.
	slicesManagedBy  = "endpointslice-controller.k8s.io"
	mirrorsManagedBy = "endpointslicemirroring-controller.k8s.io"

	// staleRetry is how long a sync waits for the cache to see this process's
	// last write before it looks again anyway: for a write that was undone, say.
	staleRetry = time.Second
)

// syncSlices makes the EndpointSlices of one Service what its Pods say.
func (c *Controller) syncSlices(_ context.Context, key name) error {
	service, err := c.services.Services(key.Namespace).Get(key.Name)
	if apierrors.IsNotFound(err) {
		// The garbage collector removes the slices, which the Service owns.
		c.slicesTrigger.DeleteService(key.Namespace, key.Name)
		c.reconciler.DeleteService(key.Namespace, key.Name)
		c.slicesTracker.DeleteService(key.Namespace, key.Name)
		c.slicesFresh.arrived(key)
		c.slicesPace.synced(key, 0, time.Time{})
		return nil
	}
	if err != nil {
		return err
	}
	if !selectsPods(service) {
		return nil // slices that others write
	}
	existing, ok := c.current(service, slicesManagedBy, c.slicesTracker, c.slicesFresh, c.slicesQueue)
	if !ok {
		return nil
	}
	pods := c.podsOf(service)
	c.slicesPace.synced(key, len(pods), time.Now())
	// Computed on every pass, also one that writes nothing: it keeps state.
	trigger := c.slicesTrigger.ComputeEndpointLastChangeTriggerTime(key.Namespace, service, pods)
	if err := c.reconciler.Reconcile(c.klog, service, c.withNode(service, pods), existing, trigger); err != nil {
		if !apierrors.IsConflict(err) {
			c.recorder.Eventf(service, v1.EventTypeWarning, "FailedToUpdateEndpointSlices",
				"Error updating Endpoint Slices for Service %s: %v", key, err)
		}
		return fmt.Errorf("EndpointSlices of Service %s: %w", key, err)
	}
	return nil
}

// current returns the slices of a Service that one manager made, or !ok if the
// cache has not yet seen this process's own last write to them; the sync is
// then queued again for when it has.
func (c *Controller) current(service *v1.Service, managedBy string, tracker *endpointsliceutil.EndpointSliceTracker, fresh *freshness, q queue) (_ []*discovery.EndpointSlice, ok bool) {
	key := name{Namespace: service.Namespace, Name: service.Name}
	existing := c.slicesOf(key, managedBy)
	if !tracker.StaleSlices(service, existing) {
		return existing, true
	}
	tooLong := fresh.await(key)
	if existing = c.slicesOf(key, managedBy); tracker.StaleSlices(service, existing) {
		if !tooLong {
			q.AddAfter(key, staleRetry)
			return nil, false
		}
		c.log.Warn("a written EndpointSlice never arrived; going on without it", "service", key.String())
		tracker.DeleteService(key.Namespace, key.Name)
	}
	fresh.arrived(key)
	return existing, true
}

// selectsPods says whether this controller makes the Service's endpoints. One
// without a selector is somebody else's, and ExternalName has none.
func selectsPods(service *v1.Service) bool {
	return len(service.Spec.Selector) > 0 && service.Spec.Type != v1.ServiceTypeExternalName
}

// podsOf are the Pods a Service selects, out of the cache.
func (c *Controller) podsOf(service *v1.Service) []*v1.Pod {
	keys := c.podIndex.selected(service.Namespace, service.Spec.Selector)
	pods := make([]*v1.Pod, 0, len(keys))
	for _, key := range keys {
		// The cache may be ahead of the index; the event that brings the index
		// up to date queues the Service again.
		if pod, err := c.pods.Pods(key.Namespace).Get(key.Name); err == nil && selects(service.Spec.Selector, pod.Labels) {
			pods = append(pods, pod)
		}
	}
	return pods
}

// withNode leaves out Pods whose Node is not known (yet, or any more): their
// zone is not either. The Node's arrival queues the Service again. A Service
// that publishes what is not ready wants them all the same.
func (c *Controller) withNode(service *v1.Service, pods []*v1.Pod) []*v1.Pod {
	if service.Spec.PublishNotReadyAddresses {
		return pods
	}
	known := pods[:0:0]
	for _, pod := range pods {
		if !endpointsliceutil.ShouldPodBeInEndpoints(pod, true) {
			continue
		}
		if _, err := c.nodes.Get(pod.Spec.NodeName); apierrors.IsNotFound(err) {
			c.log.Debug("pod left out of the endpoints: its node is not known", "pod", pod.Namespace+"/"+pod.Name, "node", pod.Spec.NodeName)
			continue
		}
		known = append(known, pod)
	}
	return known
}

// slicesOf are the slices of a Service that one manager made and that nobody
// is deleting.
func (c *Controller) slicesOf(service name, managedBy string) []*discovery.EndpointSlice {
	objects, err := c.sliceStore.ByIndex(byService, service.String())
	if err != nil { // the index was added in New
		panic(err)
	}
	var found []*discovery.EndpointSlice
	for _, o := range objects {
		if s := o.(*discovery.EndpointSlice); s.Labels[discovery.LabelManagedBy] == managedBy && s.DeletionTimestamp == nil {
			found = append(found, s)
		}
	}
	return found
}

// byService is the name of the slice informer's index by the Service's key.
const byService = "fairway.dev/service"

func sliceIndexers() cache.Indexers {
	return cache.Indexers{byService: func(obj any) ([]string, error) {
		s, ok := obj.(*discovery.EndpointSlice)
		if !ok || s.Labels[discovery.LabelServiceName] == "" {
			return nil, nil
		}
		return []string{serviceOf(s).String()}, nil
	}}
}

// serviceOf is the Service a slice's label names.
func serviceOf(s *discovery.EndpointSlice) name {
	return name{Namespace: s.Namespace, Name: s.Labels[discovery.LabelServiceName]}
}
