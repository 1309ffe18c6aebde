package lb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"fairway.dev/fairway/api/v1alpha1"
	"fairway.dev/fairway/internal/lb/ipam"
)

// workers is how many Services are written at the same time.
const workers = 16

// controller is one term of leadership.
type controller struct {
	Options
	client  kubernetes.Interface
	fairway *v1alpha1.Client
	logger  *slog.Logger

	services   cache.SharedIndexInformer
	lister     corelisters.ServiceLister
	namespaces cache.SharedIndexInformer
	nodes      cache.SharedIndexInformer
	pools      cache.SharedIndexInformer

	queue      workqueue.TypedRateLimitingInterface[string]
	poolsDirty chan struct{} // pools are to be read anew
	usageDirty chan struct{} // usage may have changed
	events     record.EventRecorder

	mu       sync.Mutex
	alloc    *ipam.Allocator
	written  map[string]string // Services to the resource version written last
	problems map[string]error  // pools that are not valid
	common   bool              // a pool gives out nodes' addresses
}

func newController(o Options, client kubernetes.Interface, fairway *v1alpha1.Client) *controller {
	return &controller{
		Options: o, client: client, fairway: fairway, logger: o.Logger,
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](10*time.Millisecond, 30*time.Second)),
		poolsDirty: make(chan struct{}, 1),
		usageDirty: make(chan struct{}, 1),
		alloc:      ipam.New(o.PortBusy),
		written:    map[string]string{},
	}
}

// run works until the term ends.
func (c *controller) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: c.client.CoreV1().Events("")})
	c.events = broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: fieldManager})

	factory := informers.NewSharedInformerFactoryWithOptions(c.client, 0, informers.WithTransform(slim))
	c.services = factory.Core().V1().Services().Informer()
	c.lister = factory.Core().V1().Services().Lister()
	c.namespaces = factory.Core().V1().Namespaces().Informer()
	c.nodes = factory.Core().V1().Nodes().Informer()
	c.pools = c.fairway.IPPoolInformer()
	c.handle()
	factory.Start(ctx.Done())
	wg.Go(func() { c.pools.RunWithContext(ctx) })
	defer factory.Shutdown()
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), c.services.HasSynced, c.namespaces.HasSynced, c.nodes.HasSynced, c.pools.HasSynced) {
		return
	}
	start := time.Now()
	c.adopt()
	c.logger.Info("load balancer addresses adopted", "services", len(c.services.GetStore().ListKeys()), "pools", len(c.pools.GetStore().ListKeys()), "took", time.Since(start))

	for range workers {
		wg.Go(func() {
			for c.next(ctx) {
			}
		})
	}
	wg.Go(func() { c.watchPools(ctx) })
	wg.Go(func() { c.writeUsage(ctx) })
	<-ctx.Done()
	c.queue.ShutDown()
}

// handle has every change queued that may concern us.
func (c *controller) handle() {
	enqueue := func(obj any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil {
			c.queue.Add(key)
		}
	}
	c.services.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    enqueue,
		UpdateFunc: func(_, obj any) { enqueue(obj) },
		DeleteFunc: enqueue,
	})
	c.namespaces.AddEventHandler(cache.ResourceEventHandlerFuncs{UpdateFunc: func(old, obj any) {
		ns := obj.(*corev1.Namespace)
		if maps.Equal(old.(*corev1.Namespace).Labels, ns.Labels) {
			return
		}
		list, err := c.lister.Services(ns.Name).List(labels.Everything())
		if err == nil {
			for _, svc := range list {
				enqueue(svc)
			}
		}
	}})
	dirty := func(any) { signal(c.poolsDirty) }
	c.pools.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: dirty, DeleteFunc: dirty,
		UpdateFunc: func(old, obj any) {
			a, b := old.(*v1alpha1.IPPool), obj.(*v1alpha1.IPPool)
			if a.Generation != b.Generation || (a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil) {
				dirty(nil)
			}
		},
	})
	nodes := func(any) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.common {
			dirty(nil)
		}
	}
	c.nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: nodes, DeleteFunc: nodes,
		UpdateFunc: func(old, obj any) {
			a, b := old.(*corev1.Node), obj.(*corev1.Node)
			if nodeReady(a) != nodeReady(b) || !maps.Equal(a.Labels, b.Labels) || !slices.Equal(a.Status.Addresses, b.Status.Addresses) {
				nodes(nil)
			}
		},
	})
}

// adopt takes over what Services have according to their status, the oldest
// first; nothing is given out before.
func (c *controller) adopt() {
	c.readPools()
	var list []*corev1.Service
	for _, obj := range c.services.GetStore().List() {
		if svc := obj.(*corev1.Service); Handles(svc, c.Classless) && len(svc.Status.LoadBalancer.Ingress) > 0 {
			list = append(list, svc)
		}
	}
	slices.SortFunc(list, func(a, b *corev1.Service) int {
		if d := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); d != 0 {
			return d
		}
		return strings.Compare(string(a.UID), string(b.UID))
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, svc := range list {
		req, _ := requestOf(svc, c.namespaceLabels(svc.Namespace))
		held := heldOf(svc)
		if !slices.Contains(svc.Finalizers, Finalizer) {
			// Another load balancer's, or written by hand: ours only if in a pool.
			held = slices.DeleteFunc(held, func(h ipam.Assigned) bool { return !c.alloc.Has(h.Addr) })
		}
		c.alloc.Adopt(req, held)
	}
}

// readPools gives the allocator the pools as they are.
func (c *controller) readPools() {
	var nodes []*corev1.Node
	for _, obj := range c.nodes.GetStore().List() {
		nodes = append(nodes, obj.(*corev1.Node))
	}
	slices.SortFunc(nodes, func(a, b *corev1.Node) int { return strings.Compare(a.Name, b.Name) })
	list := c.poolList()
	problems := map[string]error{}
	var pools []ipam.Pool
	common := false
	for _, p := range list {
		pool, err := poolOf(p, nodes)
		if err != nil {
			problems[p.Name] = err
			c.logger.Warn("address pool is not valid, and not used", "pool", p.Name, "err", err)
		}
		common = common || pool.Common
		pools = append(pools, pool)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.Copy(problems, c.alloc.SetPools(pools))
	c.problems, c.common = problems, common
	c.changed()
}

func (c *controller) poolList() []*v1alpha1.IPPool {
	var list []*v1alpha1.IPPool
	for _, obj := range c.pools.GetStore().List() {
		list = append(list, obj.(*v1alpha1.IPPool))
	}
	sortPools(list)
	return list
}

// watchPools reads the pools anew whenever they change.
func (c *controller) watchPools(ctx context.Context) {
	// Sockets on nodes come and go without any event: those who wait for a
	// node's port try again from time to time.
	retry := time.NewTicker(5 * time.Second)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.poolsDirty:
			c.readPools()
		case <-retry.C:
			c.mu.Lock()
			if c.common && c.PortBusy != nil && c.alloc.Waiting() > 0 {
				c.alloc.Retry()
				c.changed()
			}
			c.mu.Unlock()
		}
	}
}

// changed queues whoever has something new; c.mu is held.
func (c *controller) changed() {
	for _, key := range c.alloc.TakeChanged() {
		c.queue.Add(key)
	}
	signal(c.usageDirty)
}

func (c *controller) namespaceLabels(name string) labels.Set {
	obj, ok, err := c.namespaces.GetStore().GetByKey(name)
	if err != nil || !ok {
		return nil
	}
	return labels.Set(obj.(*corev1.Namespace).Labels)
}

func (c *controller) next(ctx context.Context) bool {
	key, shutdown := c.queue.Get()
	if shutdown {
		return false
	}
	defer c.queue.Done(key)
	if ctx.Err() != nil {
		return true // drain
	}
	err := c.reconcile(ctx, key)
	switch {
	case err == nil:
		c.queue.Forget(key)
	case apierrors.IsConflict(err), apierrors.IsNotFound(err), errors.Is(err, context.Canceled):
		// It has changed meanwhile, and its event is on the way.
		c.queue.AddRateLimited(key)
	default:
		c.logger.Warn("write load balancer address, will try again", "service", key, "err", err)
		c.queue.AddRateLimited(key)
	}
	return true
}

// reconcile makes one Service's status say what it has.
func (c *controller) reconcile(ctx context.Context, key string) error {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return nil
	}
	svc, err := c.lister.Services(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		c.drop(key)
		return nil
	}
	if err != nil {
		return err
	}
	if !Handles(svc, c.Classless) || svc.DeletionTimestamp != nil {
		if err := unassign(ctx, c.client, svc); err != nil {
			return fmt.Errorf("give addresses back: %w", err)
		}
		c.drop(key)
		return nil
	}
	req, invalid := requestOf(svc, c.namespaceLabels(namespace))
	c.mu.Lock()
	if older(svc.ResourceVersion, c.written[key]) {
		c.mu.Unlock()
		return nil // what was written last is on its way here
	}
	var o ipam.Outcome
	if invalid != nil {
		// It keeps what it has.
		o = c.alloc.Get(key)
		o.Pending = &ipam.Pending{Reason: reasonInvalid, Message: invalid.Error()}
	} else {
		o = c.alloc.Set(req)
	}
	c.changed()
	c.mu.Unlock()

	wrote, err := assign(ctx, c.client, svc, o)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.alloc.Confirm(key)
	c.changed()
	if wrote != "" {
		c.written[key] = wrote
	} else {
		delete(c.written, key)
	}
	c.mu.Unlock()
	if wrote != "" {
		c.tell(svc, o)
	}
	return nil
}

func (c *controller) drop(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alloc.Remove(key)
	delete(c.written, key)
	c.changed()
}

// tell has events say what is new for a Service.
func (c *controller) tell(svc *corev1.Service, o ipam.Outcome) {
	now := condition(svc, o)
	if in := ingressOf(o); len(in) > 0 && !slices.EqualFunc(in, svc.Status.LoadBalancer.Ingress,
		func(a, b corev1.LoadBalancerIngress) bool { return a.IP == b.IP }) {
		var all []string
		for _, a := range o.Addresses {
			all = append(all, fmt.Sprintf("%s from pool %q", a.Addr, a.Origin))
		}
		c.events.Event(svc, corev1.EventTypeNormal, "AddressAllocated", "Allocated "+strings.Join(all, " and "))
		c.logger.Debug("load balancer address allocated", "service", svc.Namespace+"/"+svc.Name, "addresses", strings.Join(all, ", "))
	}
	old := meta.FindStatusCondition(svc.Status.Conditions, v1alpha1.ConditionAddress)
	if now.Reason == reasonAllocated || old != nil && old.Reason == now.Reason && old.Message == now.Message {
		return
	}
	kind := corev1.EventTypeWarning
	if now.Status == "True" {
		kind = corev1.EventTypeNormal
	}
	c.events.Event(svc, kind, now.Reason, now.Message)
	c.logger.Debug("load balancer address", "service", svc.Namespace+"/"+svc.Name, "reason", now.Reason, "message", now.Message)
}

// older says whether a resource version is from before another one; they are
// numbers that grow, per resource.
func older(a, b string) bool {
	x, err := strconv.ParseUint(a, 10, 64)
	y, err2 := strconv.ParseUint(b, 10, 64)
	return err == nil && err2 == nil && x < y
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// slim leaves out of the cache what nobody here reads.
func slim(obj any) (any, error) {
	if o, err := meta.Accessor(obj); err == nil {
		o.SetManagedFields(nil)
	}
	return obj, nil
}
