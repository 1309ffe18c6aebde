// Package podgc deletes Pods that nobody else will. In go Pods and Nodes from
// caches; out come deletions, without grace, of
//
//   - Pods on a Node that no longer exists: no agent is left to end them;
//   - Pods being deleted that never were on a Node;
//   - Pods being deleted on a Node that is not ready and is tainted
//     node.kubernetes.io/out-of-service;
//   - the oldest Pods that have ended, beyond a number that may be kept.
//
// A Pod that is not over becomes Failed first, so that its owner counts it so.
// It does what upstream's pod garbage collector does, which cannot be used as
// a library without linking the whole kubelet.
package podgc

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

const (
	// every is how often it looks.
	every = 20 * time.Second
	// missing is how long a Node must have been gone: it may be registering
	// anew, or this cache may be behind.
	missing = 40 * time.Second
)

// Collector is the collector; [New] makes one.
type Collector struct {
	client kubernetes.Interface
	pods   corelisters.PodLister
	nodes  corelisters.NodeLister
	synced []cache.InformerSynced
	keep   int
	log    *slog.Logger

	gone map[string]time.Time // Nodes that Pods name and that are not there, since when
}

// New makes a collector that keeps at most keep Pods that have ended.
func New(client kubernetes.Interface, pods coreinformers.PodInformer, nodes coreinformers.NodeInformer, keep int, log *slog.Logger) *Collector {
	return &Collector{
		client: client, pods: pods.Lister(), nodes: nodes.Lister(), keep: keep, log: log,
		synced: []cache.InformerSynced{pods.Informer().HasSynced, nodes.Informer().HasSynced},
		gone:   map[string]time.Time{},
	}
}

// Run looks from time to time until ctx ends.
func (c *Collector) Run(ctx context.Context) {
	if !cache.WaitForCacheSync(ctx.Done(), c.synced...) {
		return
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		c.collect(ctx, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (c *Collector) collect(ctx context.Context, now time.Time) {
	pods, err := c.pods.List(labels.Everything())
	if err != nil {
		c.log.Error("listing pods", "error", err)
		return
	}
	nodes, err := c.nodes.List(labels.Everything())
	if err != nil {
		c.log.Error("listing nodes", "error", err)
		return
	}
	byName := make(map[string]*v1.Node, len(nodes))
	for _, n := range nodes {
		byName[n.Name] = n
	}
	c.note(pods, byName, now)
	for _, d := range c.doomed(pods, byName, now) {
		if d.node != "" { // the cache may be behind: ask
			if _, err := c.client.CoreV1().Nodes().Get(ctx, d.node, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				continue
			}
		}
		if err := c.delete(ctx, d.pod, d.why); err != nil && ctx.Err() == nil {
			c.log.Warn("deleting a pod nobody else will", "pod", d.pod.Namespace+"/"+d.pod.Name, "why", d.why, "error", err)
		}
	}
}

// note keeps account of how long Nodes have been missing.
func (c *Collector) note(pods []*v1.Pod, nodes map[string]*v1.Node, now time.Time) {
	missing := map[string]time.Time{}
	for _, p := range pods {
		name := p.Spec.NodeName
		if name == "" || nodes[name] != nil {
			continue
		}
		since, ok := c.gone[name]
		if !ok {
			since = now
		}
		missing[name] = since
	}
	c.gone = missing
}

// doom is a Pod to delete. node, if set, is the Node that has to be gone.
type doom struct {
	pod  *v1.Pod
	node string
	why  string
}

func (c *Collector) doomed(pods []*v1.Pod, nodes map[string]*v1.Node, now time.Time) []doom {
	var out []doom
	var ended []*v1.Pod
	for _, p := range pods {
		node := nodes[p.Spec.NodeName]
		over := p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed
		switch {
		case p.Spec.NodeName == "" && p.DeletionTimestamp != nil:
			out = append(out, doom{pod: p, why: "it never was on a node"})
		case p.Spec.NodeName != "" && node == nil:
			if now.Sub(c.gone[p.Spec.NodeName]) >= missing {
				out = append(out, doom{pod: p, node: p.Spec.NodeName, why: "its node no longer exists"})
			}
		case node != nil && p.DeletionTimestamp != nil && outOfService(node):
			out = append(out, doom{pod: p, why: "its node is out of service"})
		case over && p.DeletionTimestamp == nil:
			ended = append(ended, p)
		}
	}
	if extra := len(ended) - c.keep; c.keep > 0 && extra > 0 {
		slices.SortFunc(ended, func(a, b *v1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
		for _, p := range ended[:extra] {
			out = append(out, doom{pod: p, why: fmt.Sprintf("more than %d pods have ended", c.keep)})
		}
	}
	return out
}

func outOfService(node *v1.Node) bool {
	for _, cond := range node.Status.Conditions {
		if cond.Type == v1.NodeReady && cond.Status == v1.ConditionTrue {
			return false
		}
	}
	for _, t := range node.Spec.Taints {
		if t.Key == v1.TaintNodeOutOfService {
			return true
		}
	}
	return false
}

// delete ends a Pod: Failed if it was not over, then gone.
func (c *Collector) delete(ctx context.Context, pod *v1.Pod, why string) error {
	client := c.client.CoreV1().Pods(pod.Namespace)
	if pod.Status.Phase != v1.PodSucceeded && pod.Status.Phase != v1.PodFailed {
		patch, err := json.Marshal(map[string]any{"status": v1.PodStatus{
			Phase: v1.PodFailed,
			Conditions: []v1.PodCondition{{
				Type: v1.DisruptionTarget, Status: v1.ConditionTrue, Reason: "DeletionByPodGC",
				Message: "PodGC: " + why, LastTransitionTime: metav1.Now(), ObservedGeneration: pod.Generation,
			}},
		}})
		if err != nil {
			return err
		}
		if _, err := client.Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
			if apierrors.IsNotFound(err) {
				return nil
			}
			return err
		}
	}
	c.log.Info("deleting a pod nobody else will", "pod", pod.Namespace+"/"+pod.Name, "why", why)
	err := client.Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64), Preconditions: metav1.NewUIDPreconditions(string(pod.UID))})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
