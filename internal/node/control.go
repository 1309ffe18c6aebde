package node

import (
	"context"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// control is what all nodes of the process share: one watch each on Services,
// EndpointSlices and Nodes.
type control struct {
	client   kubernetes.Interface
	services cache.SharedIndexInformer
	slices   cache.SharedIndexInformer
	nodes    cache.SharedIndexInformer
	unrouted func(ctx context.Context, pod *v1.Pod) error
}

// byPod indexes EndpointSlices by the UIDs of the Pods that they list as ready.
const byPod = "readyPod"

func newControl(client kubernetes.Interface, unrouted func(context.Context, *v1.Pod) error) (*control, error) {
	f := informers.NewSharedInformerFactory(client, 0)
	c := &control{client: client, unrouted: unrouted, services: f.Core().V1().Services().Informer(),
		slices: f.Discovery().V1().EndpointSlices().Informer(), nodes: f.Core().V1().Nodes().Informer()}
	for _, err := range []error{
		c.slices.SetTransform(trimSlice),
		c.slices.AddIndexers(cache.Indexers{byPod: readyPods}),
		c.services.SetTransform(trim),
		c.nodes.SetTransform(trim),
	} {
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

func trim(o any) (any, error) {
	if m, ok := o.(metav1.Object); ok {
		m.SetManagedFields(nil)
	}
	return o, nil
}

// trimSlice keeps of a slice only whom it lists as ready: with many thousand
// endpoints the rest would be most of the process.
func trimSlice(o any) (any, error) {
	s, ok := o.(*discoveryv1.EndpointSlice)
	if !ok {
		return o, nil
	}
	out := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: s.Name, Namespace: s.Namespace, UID: s.UID, ResourceVersion: s.ResourceVersion,
		Labels: map[string]string{discoveryv1.LabelServiceName: s.Labels[discoveryv1.LabelServiceName]}}}
	for _, e := range s.Endpoints {
		if e.TargetRef != nil && e.TargetRef.Kind == "Pod" && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
			out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{TargetRef: &v1.ObjectReference{UID: e.TargetRef.UID}})
		}
	}
	return out, nil
}

func readyPods(o any) ([]string, error) {
	s, ok := o.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil, nil
	}
	var out []string
	for _, e := range s.Endpoints {
		out = append(out, string(e.TargetRef.UID))
	}
	return out, nil
}

// run watches until ctx ends.
func (c *control) run(ctx context.Context) {
	done := make(chan struct{}, 3)
	for _, i := range []cache.SharedIndexInformer{c.services, c.slices, c.nodes} {
		go func() {
			i.RunWithContext(ctx)
			done <- struct{}{}
		}()
	}
	for range 3 {
		<-done
	}
}

// servicesOf are those that a Pod of a namespace gets variables for.
func (c *control) servicesOf(ctx context.Context, namespace string) ([]*v1.Service, error) {
	if !c.services.HasSynced() && !cache.WaitForCacheSync(ctx.Done(), c.services.HasSynced) {
		return nil, fmt.Errorf("services have not yet been read at least once, cannot construct envvars")
	}
	var out []*v1.Service
	err := cache.ListAllByNamespace(c.services.GetIndexer(), namespace, labels.Everything(), func(o any) {
		if s, ok := o.(*v1.Service); ok {
			out = append(out, s)
		}
	})
	if o, ok, _ := c.services.GetIndexer().GetByKey("default/kubernetes"); ok && namespace != "default" {
		out = append(out, o.(*v1.Service))
	}
	return out, err
}

// settle is how long data planes that do not answer are given.
const settle = 250 * time.Millisecond

// afterwards is for connections that a Pod's kernel has taken and the Pod not
// yet: a server that closes its listener at once would reset them.
const afterwards = 50 * time.Millisecond

// leave returns when no new connection goes to the Pod: no slice lists it as
// ready, and every data plane has programmed that.
func (c *control) leave(ctx context.Context, pod *v1.Pod) error {
	if !c.slices.HasSynced() {
		return nil
	}
	listed := false
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for c.listed(pod) {
		listed = true
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("an EndpointSlice still lists it as ready")
		}
	}
	if !listed && !isReady(pod) {
		return nil // nobody has sent it anything
	}
	wait := settle
	if c.unrouted != nil {
		if err := c.unrouted(ctx, pod); err != nil {
			return err
		}
		wait = afterwards
	}
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func isReady(pod *v1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == v1.PodReady {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}

// listed tells whether a slice lists the Pod as ready that will not do so
// until the very end: one of a Service that publishes what is not ready.
func (c *control) listed(pod *v1.Pod) bool {
	slices, err := c.slices.GetIndexer().ByIndex(byPod, string(pod.UID))
	if err != nil {
		return false
	}
	for _, o := range slices {
		s := o.(*discoveryv1.EndpointSlice)
		o, ok, _ := c.services.GetIndexer().GetByKey(s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName])
		if !ok || !o.(*v1.Service).Spec.PublishNotReadyAddresses {
			return true
		}
	}
	return false
}
