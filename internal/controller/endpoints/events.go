package endpoints

import (
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	endpointsliceutil "k8s.io/endpointslice/util"
)

// foreignChangeDelay is how long a change to a slice that seems not to be this
// process's own is given to turn out to be: the watch is often quicker than
// the answer to the write.
const foreignChangeDelay = time.Second

// podFacts is all of a Pod, but its labels, that endpoints depend on.
type podFacts struct {
	uid                          types.UID
	node, hostname, subdomain    string
	addresses                    string
	ready, terminating, terminal bool
}

func factsOf(pod *v1.Pod) podFacts {
	var b strings.Builder
	for _, ip := range pod.Status.PodIPs {
		b.WriteString(ip.IP)
		b.WriteByte(' ')
	}
	return podFacts{
		uid:         pod.UID,
		node:        pod.Spec.NodeName,
		hostname:    pod.Spec.Hostname,
		subdomain:   pod.Spec.Subdomain,
		addresses:   b.String(),
		ready:       endpointsliceutil.IsPodReady(pod),
		terminating: pod.DeletionTimestamp != nil,
		terminal:    pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed,
	}
}

// onPod takes a Pod's arrival (old nil), change, or end (now nil), and queues
// the Services it concerns ahead of everything else.
func (c *Controller) onPod(old, now *v1.Pod, initial bool) {
	switch {
	case now == nil:
		c.podIndex.delete(name{Namespace: old.Namespace, Name: old.Name})
	default:
		c.podIndex.set(now)
	}
	if initial {
		return // every Service is queued at the start
	}
	relabelled := false
	if old != nil && now != nil {
		relabelled = !sameLabels(old.Labels, now.Labels)
		if !relabelled && factsOf(old) == factsOf(now) {
			return
		}
	}
	found := map[name]struct{}{}
	if now != nil {
		c.serviceIndex.selecting(now.Namespace, now.Labels, found)
	}
	if old != nil && (now == nil || relabelled) {
		c.serviceIndex.selecting(old.Namespace, old.Labels, found)
	}
	for service := range found {
		c.queueUrgently(service)
	}
}

// onService takes a Service's arrival or change, or its end.
func (c *Controller) onService(service *v1.Service, gone bool) {
	key := name{Namespace: service.Namespace, Name: service.Name}
	if gone || !selectsPods(service) {
		c.serviceIndex.delete(key)
	} else {
		c.serviceIndex.set(key, service.Spec.Selector)
	}
	c.slicesQueue.Add(key) // v1 Endpoints follow
	c.mirrorQueue.Add(key)
}

// onNode takes a Node's arrival or end, or a change of its zone or readiness.
func (c *Controller) onNode(old, now *v1.Node, initial bool) {
	select {
	case c.nodesChanged <- struct{}{}:
	default: // a look at all nodes is due already
	}
	if initial || old != nil && now != nil && zoneOf(old) == zoneOf(now) {
		return
	}
	node := now
	if node == nil {
		node = old
	}
	found := map[name]struct{}{}
	c.podIndex.labelsOn(node.Name, func(namespace string, labels map[string]string) {
		c.serviceIndex.selecting(namespace, labels, found)
	})
	for service := range found {
		c.queueUrgently(service)
	}
}

func zoneOf(node *v1.Node) string { return node.Labels[v1.LabelTopologyZone] }

func nodeReady(node *v1.Node) bool {
	for _, cond := range node.Status.Conditions {
		if cond.Type == v1.NodeReady {
			return cond.Status == v1.ConditionTrue
		}
	}
	return false
}

// refreshNodes tells the topology hints of all nodes, and queues the Services
// whose hints no longer fit them.
func (c *Controller) refreshNodes() {
	nodes, err := c.nodes.List(labels.Everything())
	if err != nil {
		c.log.Error("listing nodes for topology hints", "error", err)
		return
	}
	c.topology.SetNodes(c.klog, nodes)
	for _, key := range c.topology.GetOverloadedServices() {
		namespace, svc, _ := cache.SplitMetaNamespaceKey(key)
		c.slicesQueue.Add(name{Namespace: namespace, Name: svc})
	}
}

// onSlice takes any change of an EndpointSlice, own writes included.
func (c *Controller) onSlice(old, now *discovery.EndpointSlice) {
	either := now
	if either == nil {
		either = old
	}
	if old != nil && now != nil && serviceOf(old) != serviceOf(now) {
		// Its label was changed: it left one Service and joined another.
		c.queueOwner(old)
		c.queueOwner(now)
		return
	}
	service := serviceOf(either)
	if service.Name == "" {
		return
	}
	tracker, fresh := c.slicesTracker, c.slicesFresh
	switch {
	case manager(either) == mirrorsManagedBy || old != nil && manager(old) == mirrorsManagedBy:
		tracker, fresh = c.mirrorsTracker, c.mirrorsFresh
	case manager(either) == slicesManagedBy || old != nil && manager(old) == slicesManagedBy:
	default:
		return // somebody else's slice
	}
	if fresh.arrived(service) {
		c.queueOwner(either)
	}
	switch {
	case now == nil:
		if tracker.Has(old) && !tracker.HandleDeletion(old) {
			c.queueOwner(old) // deleted by somebody else
		}
	case old != nil && manager(old) != manager(now):
		c.queueOwner(old)
		c.queueOwner(now)
	case tracker.ShouldSync(now):
		time.AfterFunc(foreignChangeDelay, func() {
			if tracker.ShouldSync(now) {
				c.queueOwner(now)
			}
		})
	}
}

func manager(s *discovery.EndpointSlice) string { return s.Labels[discovery.LabelManagedBy] }

// queueOwner queues what the slice is made from.
func (c *Controller) queueOwner(s *discovery.EndpointSlice) {
	service := serviceOf(s)
	if service.Name == "" {
		return
	}
	switch manager(s) {
	case slicesManagedBy:
		c.slicesQueue.Add(service)
	case mirrorsManagedBy:
		c.mirrorQueue.Add(service)
	}
}

// onEndpoints takes any change of v1 Endpoints, own writes included.
func (c *Controller) onEndpoints(old, now *v1.Endpoints) {
	either := now
	if either == nil {
		either = old
	}
	key := name{Namespace: either.Namespace, Name: either.Name}
	if now == nil {
		c.legacyWritten.forget(key)
		c.legacyQueue.Add(key)
	}
	if c.legacyFresh.arrived(key) {
		c.legacyQueue.Add(key)
	}
	if mayMirror(either) || old != nil && mayMirror(old) {
		c.mirrorQueue.Add(key)
	}
}

// queueUrgently queues a Service ahead of those that wait for less pressing
// reasons.
func (c *Controller) queueUrgently(service name) {
	c.slicesOrder.mark(service)
	if c.batch > 0 {
		c.slicesQueue.AddAfter(service, c.batch)
		return
	}
	c.slicesQueue.Add(service)
}

// register adds the event handlers, and returns what says that they have been
// told of everything the caches held at first.
func (c *Controller) register(in Informers) ([]cache.InformerSynced, error) {
	var synced []cache.InformerSynced
	add := func(informer cache.SharedIndexInformer, h cache.ResourceEventHandler) error {
		reg, err := informer.AddEventHandler(h)
		if err == nil {
			synced = append(synced, reg.HasSynced)
		}
		return err
	}
	for _, err := range []error{
		add(in.Nodes.Informer(), handler[v1.Node]{func(old, now *v1.Node, initial bool) {
			if old != nil && now != nil && zoneOf(old) == zoneOf(now) && nodeReady(old) == nodeReady(now) {
				return // a heartbeat
			}
			c.onNode(old, now, initial)
		}}),
		add(in.Pods.Informer(), handler[v1.Pod]{c.onPod}),
		add(in.Services.Informer(), handler[v1.Service]{func(old, now *v1.Service, _ bool) {
			if now == nil {
				c.onService(old, true)
			} else {
				c.onService(now, false)
			}
		}}),
		add(in.Slices.Informer(), handler[discovery.EndpointSlice]{func(old, now *discovery.EndpointSlice, _ bool) { c.onSlice(old, now) }}),
		add(in.Endpoints.Informer(), handler[v1.Endpoints]{func(old, now *v1.Endpoints, _ bool) { c.onEndpoints(old, now) }}),
	} {
		if err != nil {
			return nil, err
		}
	}
	return synced, nil
}

// handler turns an informer's three kinds of events into one function of the
// object before (nil when it arrives) and after (nil when it goes).
type handler[T any] struct {
	f func(old, now *T, initial bool)
}

func (h handler[T]) OnAdd(obj any, initial bool) {
	if now, ok := obj.(*T); ok {
		h.f(nil, now, initial)
	}
}

func (h handler[T]) OnUpdate(old, now any) {
	o, ok1 := old.(*T)
	n, ok2 := now.(*T)
	if ok1 && ok2 {
		h.f(o, n, false)
	}
}

func (h handler[T]) OnDelete(obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	if old, ok := obj.(*T); ok {
		h.f(old, nil, false)
	}
}
