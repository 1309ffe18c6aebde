package source

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/proxy/state"
)

// Config says where a Source reads.
type Config struct {
	// REST is how to reach the API server; its content type is ignored.
	REST *rest.Config
	// NodeName limits the Nodes watched to this one. Empty means all, for
	// processes with several node proxies.
	NodeName string
	Logger   *slog.Logger
}

// Source watches the API for any number of subscribers. It is safe for
// concurrent use.
type Source struct {
	cfg    Config
	client *client

	mu       sync.Mutex
	services map[state.Name]*state.Service
	slices   map[objectKey]*state.Slice
	nodes    map[string]*Node
	cidrs    map[string][]netip.Prefix
	waiting  map[string]bool // kinds not read in full yet
	subs     map[*Subscription]struct{}
	synced   chan struct{}
}

// New returns a Source; Run makes it work. It fails if the REST config is not
// usable, without having spoken to anybody.
func New(cfg Config) (*Source, error) {
	if cfg.REST == nil {
		return nil, errors.New("source: Config.REST is missing")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c, err := newClient(cfg.REST)
	if err != nil {
		return nil, err
	}
	return &Source{
		cfg: cfg, client: c,
		services: map[state.Name]*state.Service{}, slices: map[objectKey]*state.Slice{},
		nodes: map[string]*Node{}, cidrs: map[string][]netip.Prefix{},
		waiting: map[string]bool{"services": true, "endpointslices": true, "nodes": true, "servicecidrs": true},
		subs:    map[*Subscription]struct{}{},
		synced:  make(chan struct{}),
	}, nil
}

// Synced is closed once everything has been read in full for the first time.
func (s *Source) Synced() <-chan struct{} { return s.synced }

// Counts tells how many objects the Source holds.
func (s *Source) Counts() (services, slices int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.services), len(s.slices)
}

// Run watches until ctx ends; it returns when all it started has stopped.
// Trouble with the API server is logged and tried again for ever: what has
// been read stays in force meanwhile.
func (s *Source) Run(ctx context.Context) error {
	nodeQuery := url.Values{}
	if s.cfg.NodeName != "" {
		nodeQuery.Set("fieldSelector", "metadata.name="+s.cfg.NodeName)
	}
	var wg sync.WaitGroup
	start(ctx, &wg, s, kind[*state.Service]{
		name: "services", path: "/api/v1/services", decode: (*decoder).service,
		query: url.Values{"labelSelector": {"!" + labelProxyName}, "fieldSelector": {"spec.clusterIP!=None"}},
	}, serviceSink{s})
	start(ctx, &wg, s, kind[*state.Slice]{
		name: "endpointslices", path: "/apis/discovery.k8s.io/v1/endpointslices", decode: (*decoder).slice,
		query: url.Values{"labelSelector": {"!" + labelHeadless}},
	}, sliceSink{s})
	start(ctx, &wg, s, kind[*Node]{
		name: "nodes", path: "/api/v1/nodes", decode: (*decoder).node, query: nodeQuery,
	}, nodeSink{s})
	start(ctx, &wg, s, kind[[]netip.Prefix]{
		name: "servicecidrs", path: "/apis/networking.k8s.io/v1/servicecidrs", decode: (*decoder).serviceCIDR, optional: true,
	}, cidrSink{s})
	wg.Wait()
	return nil
}

func start[T any](ctx context.Context, wg *sync.WaitGroup, s *Source, k kind[T], to sink[T]) {
	r := &reflector[T]{kind: k, client: s.client, sink: to, decoder: newDecoder(), log: s.cfg.Logger}
	wg.Go(func() { r.run(ctx) })
}

// Changes is a batch of news for one subscriber, in the order in which they
// happened. The first batch is everything that there is.
type Changes struct {
	Services []ServiceChange
	Slices   []SliceChange
	// Node is the subscriber's Node; nil with NodeChanged set if there is none.
	Node        *Node
	NodeChanged bool
	// ServiceCIDRs are all there are, sorted, if CIDRsChanged is set.
	ServiceCIDRs []netip.Prefix
	CIDRsChanged bool
	// Oldest is when the first of these arrived here.
	Oldest time.Time
}

// ServiceChange is a Service that is new or changed, or gone (New is nil).
type ServiceChange struct {
	Name state.Name
	New  *state.Service
}

// SliceChange is a slice that is new (Old is nil), changed, or gone (New is nil).
type SliceChange struct {
	Old, New *state.Slice
}

// Subscription receives changes for one node.
type Subscription struct {
	source  *Source
	node    string
	notify  chan struct{}
	pending Changes // guarded by source.mu
	started bool
}

// Subscribe registers a node's proxy. Nothing is told before the Source is
// synced; then the first batch holds everything.
func (s *Source) Subscribe(nodeName string) *Subscription {
	sub := &Subscription{source: s, node: nodeName, notify: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subs[sub] = struct{}{}
	if len(s.waiting) == 0 {
		sub.fill()
	}
	return sub
}

// Changed receives a value when Take has something new.
func (sub *Subscription) Changed() <-chan struct{} { return sub.notify }

// Take returns all changes since the last Take.
func (sub *Subscription) Take() Changes {
	sub.source.mu.Lock()
	defer sub.source.mu.Unlock()
	c := sub.pending
	sub.pending = Changes{}
	return c
}

// Close ends the subscription.
func (sub *Subscription) Close() {
	sub.source.mu.Lock()
	defer sub.source.mu.Unlock()
	delete(sub.source.subs, sub)
}

// fill makes the first batch; source.mu is held.
func (sub *Subscription) fill() {
	s := sub.source
	sub.started = true
	c := &sub.pending
	c.Services = make([]ServiceChange, 0, len(s.services))
	for n, svc := range s.services {
		c.Services = append(c.Services, ServiceChange{n, svc})
	}
	c.Slices = make([]SliceChange, 0, len(s.slices))
	for _, sl := range s.slices {
		c.Slices = append(c.Slices, SliceChange{nil, sl})
	}
	c.Node, c.NodeChanged = s.nodes[sub.node], true
	c.ServiceCIDRs, c.CIDRsChanged = s.allCIDRs(), true
	sub.wake()
}

func (sub *Subscription) wake() {
	if sub.pending.Oldest.IsZero() {
		sub.pending.Oldest = time.Now()
	}
	select {
	case sub.notify <- struct{}{}:
	default:
	}
}

// tell gives every started subscriber a change; s.mu is held.
func (s *Source) tell(add func(*Changes)) {
	for sub := range s.subs {
		if sub.started {
			add(&sub.pending)
			sub.wake()
		}
	}
}

// readInFull notes that a kind has been; after the last one the subscribers get
// their first batch.
func (s *Source) readInFull(kind string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.waiting[kind] {
		return
	}
	delete(s.waiting, kind)
	s.cfg.Logger.Debug("read in full", "kind", kind)
	if len(s.waiting) > 0 {
		return
	}
	for sub := range s.subs {
		sub.fill()
	}
	close(s.synced)
}

func (s *Source) allCIDRs() []netip.Prefix {
	var out []netip.Prefix
	for _, list := range s.cidrs {
		out = append(out, list...)
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	return slices.Compact(out)
}
