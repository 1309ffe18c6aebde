// Package zone answers for the names of a Kubernetes cluster.
//
// In go Services, EndpointSlices, Namespaces and (where asked) Pods, from
// watches; out come answers to single questions, from memory, by the
// Kubernetes DNS-Based Service Discovery specification, version 1.1.0. It opens
// no socket and knows nothing of other servers' names.
//
// Of each object only what a name needs is kept. A change touches the one
// Service it is about: a new endpoint is in the answers as soon as its watch
// event has been read.
package zone

import (
	"cmp"
	"hash/maphash"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/dns/wire"
)

// PodNames says which names of Pods (10-244-1-7.ns.pod.<zone>) have an address.
type PodNames string

const (
	// PodsDisabled: none.
	PodsDisabled PodNames = "disabled"
	// PodsInsecure: every one that spells an address, in a namespace that
	// exists. The specification asks for this much, deprecated as it is.
	PodsInsecure PodNames = "insecure"
	// PodsVerified: those of Pods that exist, which takes a watch of all Pods.
	PodsVerified PodNames = "verified"
)

// Options of a Store.
type Options struct {
	// Domain is the cluster's domain; "cluster.local" if empty.
	Domain string
	// TTL of the answers in seconds, of negative ones too; 5 if zero.
	TTL uint32
	// Pods is PodsInsecure if empty.
	Pods PodNames
	// NameServer is the Service whose addresses the zone's name server has,
	// as "namespace/name"; "kube-system/kube-dns" if empty.
	NameServer string
	// ReverseZones are address ranges that belong to the cluster alone: an
	// address in them that has no name is answered for here, and asked nobody else.
	ReverseZones []netip.Prefix
	// Programmed, if not nil, is told how long after its cause a headless
	// Service's new endpoints were in the answers. It must be quick.
	Programmed func(time.Duration)
	Logger     *slog.Logger
}

const shardCount = 64

// Store holds the cluster's names. All its methods may be used concurrently.
type Store struct {
	opts       Options
	zone       []byte // the domain in wire form
	zoneLabels int
	nsKey      string // the name server's Service

	seed   maphash.Seed
	shards [shardCount]shard
	serial atomic.Uint32
	synced atomic.Bool

	// writeMu is held by one writer at a time, from the event to the last index.
	writeMu sync.Mutex
	// slices holds every slice by namespace and name.
	slices map[objectKey]*slice
	pods   map[objectKey]*pod
	known  map[string]bool // Namespaces
	got    [kinds]bool

	names namespaces
	rev   reverse
	podIP podIndex
}

// objectKey is an object's namespace and name.
type objectKey struct{ ns, name string }

// shard is a part of the index from names to entries.
type shard struct {
	mu sync.RWMutex
	m  map[string]*entry
	_  [64]byte // keeps the next shard's lock off this cache line
}

// entry is all that is known by one Service's name. It never changes: a writer
// puts another in its place.
type entry struct {
	svc    *service // nil while only slices have come
	slices []*slice
	*ready
}

// ready is what the slices say of endpoints that are ready.
type ready struct {
	// v4 and v6 are a headless Service's addresses, each once.
	v4 [][4]byte
	v6 [][16]byte
	// hosts has the endpoints with a hostname of their own; nil if none has.
	hosts map[string]*host
}

// noEndpoints is shared by all Services that have no names of endpoints.
var noEndpoints ready

// host is an endpoint name's addresses.
type host struct {
	v4 [][4]byte
	v6 [][16]byte
}

// New makes an empty store, which answers nothing until it has synced.
func New(o Options) (*Store, error) {
	o.Domain = cmp.Or(strings.Trim(strings.ToLower(o.Domain), "."), "cluster.local")
	o.TTL = cmp.Or(o.TTL, 5)
	o.Pods = cmp.Or(o.Pods, PodsInsecure)
	o.NameServer = cmp.Or(o.NameServer, "kube-system/kube-dns")
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{opts: o, seed: maphash.MakeSeed(), slices: map[objectKey]*slice{}, pods: map[objectKey]*pod{}, known: map[string]bool{}}
	if err := o.check(); err != nil {
		return nil, err
	}
	s.zone, _ = wire.AppendName(nil, o.Domain)
	s.zoneLabels = strings.Count(o.Domain, ".") + 1
	ns, name, _ := strings.Cut(o.NameServer, "/")
	s.nsKey = serviceKey(ns, name)
	for i := range s.shards {
		s.shards[i].m = map[string]*entry{}
	}
	s.names.m = map[string]int{}
	s.rev.init()
	s.podIP.m = map[podKey]int{}
	s.serial.Store(uint32(time.Now().Unix()))
	return s, nil
}

// Synced reports whether every watch has delivered what there was at its
// start. Until then names may be missing, so the store denies none.
func (s *Store) Synced() bool { return s.synced.Load() }

// Domain is the cluster's domain, without a dot at its end.
func (s *Store) Domain() string { return s.opts.Domain }

// serviceKey is "\x04name\x02ns": the two labels of a Service's name as a question has them.
func serviceKey(ns, name string) string {
	b := make([]byte, 0, len(ns)+len(name)+2)
	b = append(append(b, byte(len(name))), name...)
	b = append(append(b, byte(len(ns))), ns...)
	return string(b)
}

func (s *Store) shardOf(key []byte) *shard {
	return &s.shards[maphash.Bytes(s.seed, key)%shardCount]
}

// lookup finds an entry by a key whose bytes may change afterwards.
func (s *Store) lookup(key []byte) *entry {
	sh := s.shardOf(key)
	sh.mu.RLock()
	e := sh.m[string(key)]
	sh.mu.RUnlock()
	return e
}

// update puts change's result in the place of the entry of that key.
// s.writeMu is held.
func (s *Store) update(key string, change func(*entry)) {
	sh := s.shardOf([]byte(key))
	old := sh.m[key] // writers are alone, so reading takes no lock
	e := &entry{ready: &noEndpoints}
	if old != nil {
		e.svc, e.slices = old.svc, old.slices
	}
	change(e)
	e.resolve()
	sh.mu.Lock()
	if e.svc == nil && len(e.slices) == 0 {
		delete(sh.m, key)
	} else {
		sh.m[key] = e
	}
	sh.mu.Unlock()
	s.touch()
}

// touch moves the zone's serial on: it is the time in seconds, and never goes back.
func (s *Store) touch() {
	now := uint32(time.Now().Unix())
	if old := s.serial.Load(); now > old {
		s.serial.Store(now)
	}
}

// resolve works out what the slices say.
func (e *entry) resolve() {
	e.ready = &noEndpoints
	if e.svc == nil || e.svc.has&alias != 0 {
		return
	}
	if e.svc.has&headless == 0 && !slices.ContainsFunc(e.slices, func(sl *slice) bool { return sl.hosts != nil }) {
		return
	}
	e.ready = &ready{}
	isHeadless := e.svc.has&headless != 0
	for _, sl := range e.slices {
		if !isHeadless && sl.hosts == nil {
			continue
		}
		for i := range sl.len() {
			if !e.counts(sl, i) {
				continue
			}
			name := sl.host(i)
			var h *host
			if name != "" {
				if e.hosts == nil {
					e.hosts = map[string]*host{}
				}
				if h = e.hosts[name]; h == nil {
					h = &host{}
					e.hosts[name] = h
				}
			}
			if a := sl.addr(i); len(a) == 4 {
				if isHeadless {
					e.v4 = append(e.v4, [4]byte(a))
				}
				if h != nil {
					h.v4 = append(h.v4, [4]byte(a))
				}
			} else {
				if isHeadless {
					e.v6 = append(e.v6, [16]byte(a))
				}
				if h != nil {
					h.v6 = append(h.v6, [16]byte(a))
				}
			}
		}
	}
	// One endpoint may be in two slices while it moves from one to the other.
	e.v4, e.v6 = once4(e.v4), once6(e.v6)
	for _, h := range e.hosts {
		h.v4, h.v6 = once4(h.v4), once6(h.v6)
	}
}

func once4(a [][4]byte) [][4]byte {
	if len(a) < 2 {
		return a
	}
	slices.SortFunc(a, func(x, y [4]byte) int { return slices.Compare(x[:], y[:]) })
	return slices.Compact(a)
}

func once6(a [][16]byte) [][16]byte {
	if len(a) < 2 {
		return a
	}
	slices.SortFunc(a, func(x, y [16]byte) int { return slices.Compare(x[:], y[:]) })
	return slices.Compact(a)
}

// Stats are sizes, for logs and benchmarks.
type Stats struct{ Services, Slices, Names int }

// Stats counts what the store holds.
func (s *Store) Stats() Stats {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	st := Stats{Slices: len(s.slices)}
	for i := range s.shards {
		for _, e := range s.shards[i].m {
			st.Names++
			if e.svc != nil {
				st.Services++
			}
		}
	}
	return st
}
