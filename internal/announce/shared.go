package announce

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"

	"fairway.dev/fairway/api/v1alpha1"
)

// Shared is what the announcers of any number of nodes in one process have in
// common: the watches, and what they make of them. It is safe for concurrent
// use.
type Shared struct {
	client  kubernetes.Interface
	fairway *v1alpha1.Client
	logger  *slog.Logger

	synced      chan struct{}        // closed once the plan is complete
	events      record.EventRecorder // nil: none are written
	broadcaster record.EventBroadcaster
	budget      flowcontrol.RateLimiter // of events that are no warnings

	mu    sync.Mutex
	plan  *plan
	signs map[string]sign // of nodes, as their Announcers show
	subs  map[*subscription]struct{}
}

// sign is a sign of life that a node's announcer gave by way of the API server.
type sign struct {
	renewed time.Time // by the node's clock
	seen    time.Time // by ours; zero for what was there when we began to watch
	ready   bool
}

// subscription is one announcer's view of what changes.
type subscription struct {
	shared *Shared
	// C has an element when take returns something.
	C       chan struct{}
	changed map[netip.Addr]struct{}
	nodes   bool
}

// NewShared makes what announcers share; Run it. The configuration needs the
// rights to read services, nodes, endpointslices, ippools and announcers, and to
// write announcers and events.
func NewShared(config *rest.Config, logger *slog.Logger) (*Shared, error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("announce: %w", err)
	}
	fairway, err := v1alpha1.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("announce: %w", err)
	}
	broadcaster := record.NewBroadcaster()
	return &Shared{
		broadcaster: broadcaster, events: broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "fairway-announcer"}),
		budget: flowcontrol.NewTokenBucketRateLimiter(2, 50),
		client: client, fairway: fairway, logger: logger,
		synced: make(chan struct{}), plan: newPlan(), signs: map[string]sign{}, subs: map[*subscription]struct{}{},
	}, nil
}

// Run watches until ctx ends; it is called once. Announcers may be started
// before; they wait. When the API server is away, what was known last holds.
func (s *Shared) Run(ctx context.Context) error {
	factory := informers.NewSharedInformerFactoryWithOptions(s.client, 0, informers.WithTransform(slim))
	services := factory.Core().V1().Services().Informer()
	nodes := factory.Core().V1().Nodes().Informer()
	endpoints := factory.Discovery().V1().EndpointSlices().Informer()
	pools := s.fairway.IPPoolInformer()
	const byService = "service"
	err := endpoints.AddIndexers(cache.Indexers{byService: func(obj any) ([]string, error) {
		slice := obj.(*discoveryv1.EndpointSlice)
		if name := slice.Labels[discoveryv1.LabelServiceName]; name != "" {
			return []string{slice.Namespace + "/" + name}, nil
		}
		return nil, nil
	}})
	if err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	endpointsOf := func(key string) func() map[string]struct{} {
		return func() map[string]struct{} {
			objs, err := endpoints.GetIndexer().ByIndex(byService, key)
			if err != nil {
				return nil
			}
			var list []*discoveryv1.EndpointSlice
			for _, o := range objs {
				list = append(list, o.(*discoveryv1.EndpointSlice))
			}
			return endpointNodes(list)
		}
	}
	onService := func(obj any, gone bool) {
		svc, ok := obj.(*corev1.Service)
		if !ok {
			return
		}
		var f *serviceFacts
		if !gone {
			f = factsOf(svc)
		}
		key := svc.Namespace + "/" + svc.Name
		s.update(func(p *plan) ([]netip.Addr, bool) { return p.setService(key, f, endpointsOf(key)), false })
	}
	onSlice := func(obj any, _ bool) {
		slice, ok := obj.(*discoveryv1.EndpointSlice)
		if !ok {
			return
		}
		if name := slice.Labels[discoveryv1.LabelServiceName]; name != "" {
			key := slice.Namespace + "/" + name
			s.update(func(p *plan) ([]netip.Addr, bool) { return p.setEndpoints(key, endpointsOf(key)), false })
		}
	}
	onNode := func(obj any, gone bool) {
		node, ok := obj.(*corev1.Node)
		if !ok {
			return
		}
		var f *nodeFacts
		if !gone {
			facts := nodeFactsOf(node)
			f = &facts
		}
		s.update(func(p *plan) ([]netip.Addr, bool) { return p.setNode(node.Name, f) })
	}
	onPool := func(any, bool) {
		var list []*v1alpha1.IPPool
		for _, o := range pools.GetStore().List() {
			list = append(list, o.(*v1alpha1.IPPool))
		}
		slices.SortFunc(list, func(a, b *v1alpha1.IPPool) int {
			if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
				return c
			}
			return strings.Compare(a.Name, b.Name)
		})
		var facts []poolFacts
		for _, p := range list {
			facts = append(facts, poolFactsOf(p))
		}
		s.update(func(p *plan) ([]netip.Addr, bool) { return p.setPools(facts), false })
	}
	announcers := s.fairway.AnnouncerInformer()
	onAnnouncer := func(obj any, gone bool) {
		a, ok := obj.(*v1alpha1.Announcer)
		if !ok {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if gone {
			delete(s.signs, a.Name)
			return
		}
		old, known := s.signs[a.Name]
		now := sign{renewed: a.Status.RenewTime.Time, seen: old.seen, ready: a.Status.Phase == ready.String()}
		if known && now.renewed.After(old.renewed) {
			now.seen = time.Now()
		}
		s.signs[a.Name] = now
	}
	var regs []cache.ResourceEventHandlerRegistration
	for _, w := range []struct {
		informer cache.SharedIndexInformer
		handle   func(obj any, gone bool)
	}{{nodes, onNode}, {pools, onPool}, {endpoints, onSlice}, {services, onService}, {announcers, onAnnouncer}} {
		reg, err := w.informer.AddEventHandler(handler(w.handle))
		if err != nil {
			return fmt.Errorf("announce: %w", err)
		}
		regs = append(regs, reg)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	s.broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: s.client.CoreV1().Events("")})
	defer s.broadcaster.Shutdown()
	wg.Go(func() { pools.RunWithContext(ctx) })
	wg.Go(func() { announcers.RunWithContext(ctx) })
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	for _, reg := range regs {
		if !cache.WaitForCacheSync(ctx.Done(), reg.HasSynced) {
			return nil
		}
	}
	close(s.synced)
	<-ctx.Done()
	return nil
}

func handler(f func(obj any, gone bool)) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { f(obj, false) },
		UpdateFunc: func(_, obj any) { f(obj, false) },
		DeleteFunc: func(obj any) {
			if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = t.Obj
			}
			f(obj, true)
		},
	}
}

// slim leaves out of the cache what nobody here reads; in a large cluster that
// is nearly everything.
func slim(obj any) (any, error) {
	if o, err := meta.Accessor(obj); err == nil {
		o.SetManagedFields(nil)
	}
	switch o := obj.(type) {
	case *discoveryv1.EndpointSlice:
		o.Ports, o.Annotations = nil, nil
		for i, e := range o.Endpoints {
			o.Endpoints[i] = discoveryv1.Endpoint{NodeName: e.NodeName, Conditions: e.Conditions}
		}
	case *corev1.Service:
		o.Spec.Ports, o.Spec.Selector = nil, nil
	case *corev1.Node:
		o.Annotations, o.Status.Images, o.Status.VolumesInUse, o.Status.VolumesAttached = nil, nil, nil, nil
	}
	return obj, nil
}

// update changes the plan and tells the subscribers.
func (s *Shared) update(f func(*plan) (changed []netip.Addr, nodes bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed, nodes := f(s.plan)
	if len(changed) == 0 && !nodes {
		return
	}
	for sub := range s.subs {
		sub.nodes = sub.nodes || nodes
		for _, a := range changed {
			sub.changed[a] = struct{}{}
		}
		select {
		case sub.C <- struct{}{}:
		default:
		}
	}
}

// tell writes an event about each Service that has an address. Events that are
// no warnings are left out when there are very many: when a node with thousands
// of addresses dies.
func (s *Shared) tell(a netip.Addr, kind, reason, message string) {
	if s.events == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.plan.entries[a]
	if e == nil {
		return
	}
	for _, key := range e.Services {
		f := s.plan.services[key]
		if f == nil || kind == corev1.EventTypeNormal && !s.budget.TryAccept() {
			continue
		}
		namespace, name, _ := strings.Cut(key, "/")
		s.events.Event(&corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: namespace, Name: name, UID: types.UID(f.uid)}, kind, reason, message)
	}
}

// vouch tells one announcer's members of the signs of life of the others.
func (s *Shared) vouch(m *members) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, g := range s.signs {
		m.vouch(name, g.ready && !g.seen.IsZero(), g.seen)
	}
}

// subscribe begins with everything there is as changed.
func (s *Shared) subscribe() *subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := &subscription{shared: s, C: make(chan struct{}, 1), changed: map[netip.Addr]struct{}{}, nodes: true}
	for a := range s.plan.entries {
		sub.changed[a] = struct{}{}
	}
	sub.C <- struct{}{}
	s.subs[sub] = struct{}{}
	return sub
}

func (s *Shared) unsubscribe(sub *subscription) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.subs, sub)
}

// take returns what has changed since the last call: entries (nil: gone), and
// the nodes if they have.
func (sub *subscription) take() (entries map[netip.Addr]*Entry, nodes map[string]nodeFacts) {
	sub.shared.mu.Lock()
	defer sub.shared.mu.Unlock()
	entries = make(map[netip.Addr]*Entry, len(sub.changed))
	for a := range sub.changed {
		entries[a] = sub.shared.plan.entries[a]
	}
	clear(sub.changed)
	if sub.nodes {
		nodes = make(map[string]nodeFacts, len(sub.shared.plan.nodes))
		for name, f := range sub.shared.plan.nodes {
			nodes[name] = f
		}
		sub.nodes = false
	}
	return entries, nodes
}
