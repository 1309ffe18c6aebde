package zone

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// kind is one of the resources that a store watches.
type kind int

const (
	kindService kind = iota
	kindSlice
	kindNamespace
	kindPod
	kinds
)

// Watch fills the store from an API server and keeps it up to date until ctx
// ends, riding out what goes wrong on the way; the names it has stay while the
// server is away. It returns when everything it started has stopped. It needs
// get, list and watch on services, endpointslices, namespaces and, with
// PodsVerified, pods.
func (s *Store) Watch(ctx context.Context, client kubernetes.Interface) {
	core, disco := client.CoreV1(), client.DiscoveryV1()
	var wg sync.WaitGroup
	start := func(k kind, expected runtime.Object, name string,
		list func(context.Context, metav1.ListOptions) (runtime.Object, error),
		watchFn func(context.Context, metav1.ListOptions) (watch.Interface, error)) {
		lw := &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				l, err := list(ctx, o)
				if err != nil {
					return nil, err
				}
				return compactList(l)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				w, err := watchFn(ctx, o)
				if err != nil {
					return nil, err
				}
				return filter(w), nil
			},
		}
		r := cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lw, client), expected, &sink{s, k},
			cache.ReflectorOptions{Name: "dns " + name, TypeDescription: name})
		wg.Go(func() { r.RunWithContext(ctx) })
	}
	start(kindService, &service{}, "Services",
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return core.Services("").List(ctx, o)
		},
		core.Services("").Watch)
	start(kindSlice, &slice{}, "EndpointSlices",
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return disco.EndpointSlices("").List(ctx, o)
		},
		disco.EndpointSlices("").Watch)
	start(kindNamespace, &namespace{}, "Namespaces",
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return core.Namespaces().List(ctx, o)
		},
		core.Namespaces().Watch)
	if s.opts.Pods == PodsVerified {
		start(kindPod, &pod{}, "Pods",
			func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return core.Pods("").List(ctx, o)
			},
			core.Pods("").Watch)
	}
	wg.Wait()
}

// filter turns a watch's objects into compact ones as they are decoded, so
// that whole objects are garbage at once.
func filter(w watch.Interface) watch.Interface {
	return watch.Filter(w, func(in watch.Event) (watch.Event, bool) {
		if in.Type == watch.Error {
			return in, true
		}
		o := Compact(in.Object)
		if o == nil {
			return in, true // the reflector says what it thinks of it
		}
		if in.Type == watch.Bookmark {
			if m, err := meta.Accessor(in.Object); err == nil {
				headOf(o).sync.annotations = m.GetAnnotations()
			}
		}
		in.Object = o
		return in, true
	})
}

// Compact returns what the store keeps of an API object, nil for one it has no use for.
func Compact(o runtime.Object) runtime.Object {
	switch o := o.(type) {
	case *corev1.Service:
		return newService(o)
	case *discoveryv1.EndpointSlice:
		return newSlice(o)
	case *corev1.Namespace:
		return newNamespace(o)
	case *corev1.Pod:
		return newPod(o)
	}
	return nil
}

func headOf(o any) *head {
	switch o := o.(type) {
	case *service:
		return &o.head
	case *slice:
		return &o.head
	case *namespace:
		return &o.head
	case *pod:
		return &o.head
	}
	return nil
}

// compactItems is a list of compact objects, for a reflector.
type compactItems struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []runtime.Object
}

func (c *compactItems) DeepCopyObject() runtime.Object { d := *c; return &d }

func compactList(l runtime.Object) (runtime.Object, error) {
	m, err := meta.ListAccessor(l)
	if err != nil {
		return nil, err
	}
	out := &compactItems{Items: make([]runtime.Object, 0, meta.LenList(l))}
	out.SetResourceVersion(m.GetResourceVersion())
	out.SetContinue(m.GetContinue())
	out.SetRemainingItemCount(m.GetRemainingItemCount())
	err = meta.EachListItem(l, func(o runtime.Object) error {
		c := Compact(o)
		if c == nil {
			return fmt.Errorf("list of %T has an item of type %T", l, o)
		}
		out.Items = append(out.Items, c)
		return nil
	})
	return out, err
}

// sink takes what a reflector brings of one kind. Its methods are what
// cache.ReflectorStore asks for.
type sink struct {
	s *Store
	k kind
}

func (k *sink) Add(o any) error    { return k.put(o) }
func (k *sink) Update(o any) error { return k.put(o) }
func (k *sink) Resync() error      { return nil }

func (k *sink) put(o any) error {
	k.s.writeMu.Lock()
	defer k.s.writeMu.Unlock()
	return k.s.put(o)
}

// put stores a compact object. s.writeMu is held.
func (s *Store) put(o any) error {
	h := headOf(o)
	if h == nil {
		return fmt.Errorf("cannot keep a %T", o)
	}
	var changed time.Time
	if h.sync != nil {
		changed = h.sync.changed
	}
	h.settle()
	switch o := o.(type) {
	case *service:
		s.applyService(s.service(o.ns, o.name), o)
	case *slice:
		s.applySlice(s.slices[objectKey{o.ns, o.name}], o, changed)
	case *namespace:
		if !s.known[o.name] {
			s.known[o.name] = true
			s.applyNamespace(nil, o)
		}
	case *pod:
		s.applyPod(s.pods[objectKey{o.ns, o.name}], o)
	}
	return nil
}

// service finds the Service of that name as it was last seen. s.writeMu is held.
func (s *Store) service(ns, name string) *service {
	key := serviceKey(ns, name)
	if e := s.shardOf([]byte(key)).m[key]; e != nil {
		return e.svc
	}
	return nil
}

func (k *sink) Delete(o any) error {
	if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = d.Obj
	}
	k.s.writeMu.Lock()
	defer k.s.writeMu.Unlock()
	k.s.remove(o)
	return nil
}

// remove forgets the object that has o's kind and name. s.writeMu is held.
func (s *Store) remove(o any) {
	switch o := o.(type) {
	case *service:
		if old := s.service(o.ns, o.name); old != nil {
			s.applyService(old, nil)
		}
	case *slice:
		if old := s.slices[objectKey{o.ns, o.name}]; old != nil {
			s.applySlice(old, nil, time.Time{})
		}
	case *namespace:
		if s.known[o.name] {
			delete(s.known, o.name)
			s.applyNamespace(o, nil)
		}
	case *pod:
		if old := s.pods[objectKey{o.ns, o.name}]; old != nil {
			s.applyPod(old, nil)
		}
	}
}

// Replace makes the store hold exactly these objects of the sink's kind. What
// is the same before and after never misses from the answers meanwhile.
func (k *sink) Replace(list []any, _ string) error {
	s := k.s
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	keep := make(map[objectKey]bool, len(list))
	for _, o := range list {
		h := headOf(o)
		if h == nil {
			return fmt.Errorf("cannot keep a %T", o)
		}
		keep[objectKey{h.ns, h.name}] = true
		if err := s.put(o); err != nil {
			return err
		}
	}
	for _, o := range s.all(k.k) {
		if h := headOf(o); !keep[objectKey{h.ns, h.name}] {
			s.remove(o)
		}
	}
	s.arrived(k.k)
	return nil
}

// all lists what is held of a kind. s.writeMu is held.
func (s *Store) all(k kind) (out []any) {
	switch k {
	case kindService:
		for i := range s.shards {
			for _, e := range s.shards[i].m {
				if e.svc != nil {
					out = append(out, e.svc)
				}
			}
		}
	case kindSlice:
		for _, o := range s.slices {
			out = append(out, o)
		}
	case kindNamespace:
		for name := range s.known {
			out = append(out, &namespace{head{name: name}})
		}
	case kindPod:
		for _, o := range s.pods {
			out = append(out, o)
		}
	}
	return out
}

// arrived notes that all there was of a kind has come. s.writeMu is held.
func (s *Store) arrived(k kind) {
	s.got[k] = true
	if s.synced.Load() || !s.got[kindService] || !s.got[kindSlice] || !s.got[kindNamespace] ||
		s.opts.Pods == PodsVerified && !s.got[kindPod] {
		return
	}
	s.synced.Store(true)
	s.opts.Logger.Info("names are in sync with the API", "domain", s.opts.Domain, "slices", len(s.slices))
}

// Load puts API objects (Services, EndpointSlices, Namespaces, Pods) into the
// store as if a watch had brought them, and counts the store as synced: for
// tests and benchmarks, which need no API server then.
func (s *Store) Load(objects ...runtime.Object) error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	for _, o := range objects {
		if err := s.put(Compact(o)); err != nil {
			return err
		}
	}
	for k := range kinds {
		s.arrived(k)
	}
	return nil
}

// Unload is Load's opposite: it forgets the objects of these kinds and names.
func (s *Store) Unload(objects ...runtime.Object) {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	for _, o := range objects {
		s.remove(Compact(o))
	}
}
