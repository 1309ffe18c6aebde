package lb

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
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
	waits      stopwatch

	mu       sync.Mutex
	alloc    *ipam.Allocator
	written  map[string]string // Services to the resource version written last
	invalid  map[string]bool   // Services whose requests cannot be read
	problems map[string]error  // pools that are not valid
	adopted  bool              // what Services have had has been taken over
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
		invalid:    map[string]bool{},
	}
}

// run works until the term ends.
func (c *controller) run(ctx context.Context) {
	c.Monitor.begin(c)
	defer c.Monitor.end()
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

	c.Monitor.adopted.Store(true)
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
			c.enqueue(key)
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

// handled lists the Services that get their addresses here and pass, the oldest
// first.
func (c *controller) handled(pass func(*corev1.Service) bool) []*corev1.Service {
	var list []*corev1.Service
	for _, obj := range c.services.GetStore().List() {
		if svc := obj.(*corev1.Service); Handles(svc, c.Classless, c.Classes...) && pass(svc) {
			list = append(list, svc)
		}
	}
	slices.SortFunc(list, func(a, b *corev1.Service) int {
		if d := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); d != 0 {
			return d
		}
		return strings.Compare(string(a.UID), string(b.UID))
	})
	return list
}

// adopt takes over what Services have according to their status, the oldest
// first, those with addresses from here before others; nothing is given out
// before.
func (c *controller) adopt() {
	c.readPools()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, svc := range c.handled(func(svc *corev1.Service) bool { return len(svc.Status.LoadBalancer.Ingress) > 0 && !foreign(svc) }) {
		req, _ := requestOf(svc, c.namespaceLabels(svc.Namespace))
		c.alloc.Adopt(req, heldOf(svc))
	}
	for _, svc := range c.handled(foreign) {
		c.alloc.Take(claimOf(svc, c.namespaceLabels(svc.Namespace)))
	}
	c.adopted = true
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
	var claims []ipam.Claim
	if c.adopted {
		// What others gave out of addresses that are only now in a pool is in use.
		for _, svc := range c.handled(foreign) {
			claims = append(claims, claimOf(svc, c.namespaceLabels(svc.Namespace)))
		}
	}
	maps.Copy(problems, c.alloc.SetPools(pools, claims...))
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
			c.Monitor.turned.Store(time.Now().UnixNano())
		}
	}
}

// changed queues whoever has something new; c.mu is held.
func (c *controller) changed() {
	for _, key := range c.alloc.TakeChanged() {
		c.enqueue(key)
	}
	signal(c.usageDirty)
}

// enqueue has a Service looked at.
func (c *controller) enqueue(key string) {
	c.waits.start(key)
	c.queue.Add(key)
}

func (c *controller) namespaceLabels(name string) labels.Set {
	obj, ok, err := c.namespaces.GetStore().GetByKey(name)
	if err != nil || !ok {
		return nil
	}
	return labels.Set(obj.(*corev1.Namespace).Labels)
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
