package endpoints

import (
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
)

// name identifies an object by namespace and name; Services, Endpoints and
// Pods are all known by it.
type name = cache.ObjectName

// pair is one label, in one namespace.
type pair struct{ namespace, key, value string }

// multimap maps a key to a set of values. No key maps to an empty set.
type multimap[K, V comparable] map[K]map[V]struct{}

func (m multimap[K, V]) add(k K, v V) {
	set := m[k]
	if set == nil {
		set = map[V]struct{}{}
		m[k] = set
	}
	set[v] = struct{}{}
}

func (m multimap[K, V]) remove(k K, v V) {
	delete(m[k], v)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

// serviceIndex finds the Services that select a Pod.
//
// A selector is a conjunction of label pairs, so a Service can only select
// Pods that carry any given one of its pairs: filing each Service under one
// pair, its anchor, is enough to find it through the Pod's labels. The anchor
// is the pair with the fewest Services under it, so that a label every Service
// shares ("part-of: shop") gathers none. A look-up costs the number of the
// Pod's labels plus the number of Services filed under them, whatever the
// number of Services in the namespace.
//
// Safe for concurrent use.
type serviceIndex struct {
	mu       sync.RWMutex
	services map[name]indexedService
	anchored multimap[pair, name]
}

type indexedService struct {
	selector map[string]string
	anchor   pair
}

func newServiceIndex() *serviceIndex {
	return &serviceIndex{services: map[name]indexedService{}, anchored: multimap[pair, name]{}}
}

// set files a Service under its selector. An empty selector selects nothing.
// The map is kept and must not change.
func (x *serviceIndex) set(service name, selector map[string]string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if old, ok := x.services[service]; ok {
		if sameLabels(old.selector, selector) {
			return
		}
		x.anchored.remove(old.anchor, service)
		delete(x.services, service)
	}
	if len(selector) == 0 {
		return
	}
	var anchor pair
	fewest := -1
	for k, v := range selector {
		p := pair{service.Namespace, k, v}
		if n := len(x.anchored[p]); fewest < 0 || n < fewest {
			anchor, fewest = p, n
		}
	}
	x.services[service] = indexedService{selector: selector, anchor: anchor}
	x.anchored.add(anchor, service)
}

func (x *serviceIndex) delete(service name) { x.set(service, nil) }

// selecting adds to found the Services of the namespace that select a Pod with
// these labels.
func (x *serviceIndex) selecting(namespace string, labels map[string]string, found map[name]struct{}) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for k, v := range labels {
		for service := range x.anchored[pair{namespace, k, v}] {
			if selects(x.services[service].selector, labels) {
				found[service] = struct{}{}
			}
		}
	}
}

// podIndex finds the Pods that a Service selects and those on a Node. It holds
// names only; whether a found Pod still has its labels is for the caller to
// see, whose cache may be ahead. Safe for concurrent use.
type podIndex struct {
	mu     sync.RWMutex
	pods   map[name]indexedPod
	byPair multimap[pair, name]
	byNode multimap[string, name]
}

type indexedPod struct {
	labels map[string]string
	node   string
}

func newPodIndex() *podIndex {
	return &podIndex{pods: map[name]indexedPod{}, byPair: multimap[pair, name]{}, byNode: multimap[string, name]{}}
}

// set files a Pod under its labels and its node.
func (x *podIndex) set(pod *v1.Pod) {
	key := name{Namespace: pod.Namespace, Name: pod.Name}
	x.mu.Lock()
	defer x.mu.Unlock()
	old, known := x.pods[key]
	if known && old.node == pod.Spec.NodeName && sameLabels(old.labels, pod.Labels) {
		return
	}
	x.drop(key, old)
	x.pods[key] = indexedPod{labels: pod.Labels, node: pod.Spec.NodeName}
	for k, v := range pod.Labels {
		x.byPair.add(pair{key.Namespace, k, v}, key)
	}
	if pod.Spec.NodeName != "" {
		x.byNode.add(pod.Spec.NodeName, key)
	}
}

func (x *podIndex) delete(pod name) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.drop(pod, x.pods[pod])
	delete(x.pods, pod)
}

func (x *podIndex) drop(key name, old indexedPod) {
	for k, v := range old.labels {
		x.byPair.remove(pair{key.Namespace, k, v}, key)
	}
	if old.node != "" {
		x.byNode.remove(old.node, key)
	}
}

// selected returns the Pods of the namespace with all labels of the selector,
// none for an empty one. It looks at as many Pods as carry the rarest of them.
func (x *podIndex) selected(namespace string, selector map[string]string) []name {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var rarest map[name]struct{}
	first := true
	for k, v := range selector {
		set := x.byPair[pair{namespace, k, v}]
		if first || len(set) < len(rarest) {
			rarest, first = set, false
		}
	}
	found := make([]name, 0, len(rarest))
	for pod := range rarest {
		if selects(selector, x.pods[pod].labels) {
			found = append(found, pod)
		}
	}
	return found
}

// labelsOn calls f with the namespace and labels of every Pod on the node. f
// must not call the index.
func (x *podIndex) labelsOn(node string, f func(namespace string, labels map[string]string)) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for pod := range x.byNode[node] {
		f(pod.Namespace, x.pods[pod].labels)
	}
}

// selects says whether labels contain every pair of a non-empty selector.
func selects(selector, labels map[string]string) bool {
	if len(selector) == 0 || len(selector) > len(labels) {
		return false
	}
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func sameLabels(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if got, ok := b[k]; !ok || got != v {
			return false
		}
	}
	return true
}
