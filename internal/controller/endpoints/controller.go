package endpoints

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	v1 "k8s.io/api/core/v1"
	coreinformers "k8s.io/client-go/informers/core/v1"
	discoveryinformers "k8s.io/client-go/informers/discovery/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/endpointslice"
	endpointslicemetrics "k8s.io/endpointslice/metrics"
	"k8s.io/endpointslice/topologycache"
	endpointsliceutil "k8s.io/endpointslice/util"
)

// Informers are what the controller watches. The caller starts them after
// [New], which adds an index to Slices.
type Informers struct {
	Services  coreinformers.ServiceInformer
	Pods      coreinformers.PodInformer
	Nodes     coreinformers.NodeInformer
	Endpoints coreinformers.EndpointsInformer
	Slices    discoveryinformers.EndpointSliceInformer
}

// Options configure a [Controller].
type Options struct {
	// Client writes. Its own rate limit, if any, bounds how soon a change is
	// told; it should have none.
	Client    kubernetes.Interface
	Informers Informers
	Logger    *slog.Logger

	// MaxEndpointsPerSlice is 100 when zero, as upstream.
	MaxEndpointsPerSlice int32
	// Workers is how many Services' slices are written at a time; 8 when zero.
	Workers int
	// BatchPeriod holds back what Pods' changes cause, so that several are
	// written at once. Zero, the default, holds back nothing.
	BatchPeriod time.Duration
}

// Controller is the endpoints controller; see the package's documentation.
type Controller struct {
	client  kubernetes.Interface
	log     *slog.Logger
	klog    logr.Logger // the same, for upstream's libraries
	batch   time.Duration
	workers int

	services   corelisters.ServiceLister
	pods       corelisters.PodLister
	nodes      corelisters.NodeLister
	endpoints  corelisters.EndpointsLister
	sliceStore cache.Indexer
	synced     []cache.InformerSynced

	serviceIndex *serviceIndex
	podIndex     *podIndex

	// EndpointSlices of Services with a selector.
	slicesQueue   queue
	slicesOrder   *order
	reconciler    *endpointslice.Reconciler
	slicesTracker *endpointsliceutil.EndpointSliceTracker
	slicesTrigger *endpointsliceutil.TriggerTimeTracker
	slicesFresh   *freshness
	slicesPace    *pace
	topology      *topologycache.TopologyCache
	nodesChanged  chan struct{}

	// v1 Endpoints of the same Services.
	legacyQueue   queue
	legacyTrigger *endpointsliceutil.TriggerTimeTracker
	legacyWritten *written
	legacyFresh   *freshness
	legacyPace    *pace

	// EndpointSlices that mirror hand-written Endpoints.
	mirrorQueue    queue
	mirrorsTracker *endpointsliceutil.EndpointSliceTracker
	mirrorsFresh   *freshness

	events   record.EventBroadcaster
	recorder record.EventRecorder
}

type queue = workqueue.TypedRateLimitingInterface[name]

// newQueue makes a queue whose retries back off from 50 ms to a minute, and
// never give up.
func newQueue(label string, o *order) queue {
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[name](50*time.Millisecond, time.Minute)
	config := workqueue.TypedQueueConfig[name]{Name: label}
	if o != nil {
		config.Queue = o
	}
	delaying := workqueue.NewTypedDelayingQueueWithConfig(workqueue.TypedDelayingQueueConfig[name]{
		Name: label, Queue: workqueue.NewTypedWithConfig(config),
	})
	return workqueue.NewTypedRateLimitingQueueWithConfig(limiter, workqueue.TypedRateLimitingQueueConfig[name]{Name: label, DelayingQueue: delaying})
}

// New makes a controller and hooks it into the informers.
func New(opts Options) (*Controller, error) {
	if opts.MaxEndpointsPerSlice == 0 {
		opts.MaxEndpointsPerSlice = 100
	}
	if opts.Workers == 0 {
		opts.Workers = 8
	}
	in := opts.Informers
	events := record.NewBroadcaster()
	order := newOrder()
	c := &Controller{
		client:  opts.Client,
		log:     opts.Logger,
		klog:    logr.FromSlogHandler(opts.Logger.Handler()),
		batch:   opts.BatchPeriod,
		workers: opts.Workers,

		services:   in.Services.Lister(),
		pods:       in.Pods.Lister(),
		nodes:      in.Nodes.Lister(),
		endpoints:  in.Endpoints.Lister(),
		sliceStore: in.Slices.Informer().GetIndexer(),

		serviceIndex: newServiceIndex(),
		podIndex:     newPodIndex(),

		slicesQueue:   newQueue("fairway_endpoint_slices", order),
		slicesOrder:   order,
		slicesTracker: endpointsliceutil.NewEndpointSliceTracker(),
		slicesTrigger: endpointsliceutil.NewTriggerTimeTracker(),
		slicesFresh:   newFreshness(),
		slicesPace:    newPace(100 * time.Microsecond),
		topology:      topologycache.NewTopologyCache(),
		nodesChanged:  make(chan struct{}, 1),

		legacyQueue:   newQueue("fairway_endpoints", nil),
		legacyTrigger: endpointsliceutil.NewTriggerTimeTracker(),
		legacyWritten: newWritten(),
		legacyFresh:   newFreshness(),
		legacyPace:    newPace(time.Millisecond),

		mirrorQueue:    newQueue("fairway_endpoints_mirror", nil),
		mirrorsTracker: endpointsliceutil.NewEndpointSliceTracker(),
		mirrorsFresh:   newFreshness(),

		events:   events,
		recorder: events.NewRecorder(scheme.Scheme, v1.EventSource{Component: "fairway-endpoints"}),
	}
	endpointslicemetrics.RegisterMetrics()
	c.reconciler = endpointslice.NewReconciler(opts.Client, c.nodes, opts.MaxEndpointsPerSlice, c.slicesTracker, c.topology,
		c.recorder, slicesManagedBy, endpointslice.WithPreferSameTrafficDistributionEnabled(true))
	if err := in.Slices.Informer().AddIndexers(sliceIndexers()); err != nil {
		return nil, fmt.Errorf("adding the index of slices by Service: %w", err)
	}
	synced, err := c.register(in)
	if err != nil {
		return nil, fmt.Errorf("watching: %w", err)
	}
	c.synced = synced
	return c, nil
}

// Run works until ctx ends and returns when all has stopped. The informers
// must have been started. A restarted controller takes up what it finds: all
// it knows is in the API.
func (c *Controller) Run(ctx context.Context) {
	c.events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: c.client.CoreV1().Events("")})
	defer c.events.Shutdown()

	var wg sync.WaitGroup
	defer wg.Wait()
	for _, q := range []queue{c.slicesQueue, c.legacyQueue, c.mirrorQueue} {
		defer q.ShutDown()
	}
	if !cache.WaitForCacheSync(ctx.Done(), c.synced...) {
		return // told to stop
	}
	c.refreshNodes()
	if err := c.queueLeftovers(); err != nil {
		c.log.Error("looking for Endpoints without a Service", "error", err)
	}
	for range c.workers {
		wg.Go(func() {
			c.work(ctx, "EndpointSlices", c.slicesQueue, c.slicesPace, func(ctx context.Context, key name) error {
				defer c.legacyQueue.Add(key) // after the slices, which carry traffic
				return c.syncSlices(ctx, key)
			})
		})
	}
	for range max(1, c.workers/4) {
		wg.Go(func() { c.work(ctx, "Endpoints", c.legacyQueue, c.legacyPace, c.syncLegacy) })
		wg.Go(func() { c.work(ctx, "mirrored EndpointSlices", c.mirrorQueue, nil, c.syncMirror) })
	}
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-c.nodesChanged:
				c.refreshNodes()
			}
		}
	})
	<-ctx.Done()
}

// work takes items off the queue until it is shut down.
func (c *Controller) work(ctx context.Context, what string, q queue, pace *pace, sync func(context.Context, name) error) {
	for {
		key, quit := q.Get()
		if quit {
			return
		}
		if pace != nil {
			if wait := pace.wait(key, time.Now()); wait > 0 {
				q.AddAfter(key, wait)
				q.Done(key)
				continue
			}
		}
		if err := sync(ctx, key); err == nil {
			q.Forget(key)
		} else if ctx.Err() == nil {
			q.AddRateLimited(key)
			if q.NumRequeues(key) > 2 { // conflicts with others' writes are everyday
				c.log.Warn("will try again", "what", what, "service", key.String(), "tries", q.NumRequeues(key), "error", err)
			}
		}
		q.Done(key)
	}
}
