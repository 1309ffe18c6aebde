// Package fakeapi is a small stand-in for a Kubernetes API server: it lists and
// watches Services, EndpointSlices, Nodes, ServiceCIDRs, Namespaces and Pods in
// protobuf, from memory, with streaming lists, bookmarks and versions that can be too old.
//
// It is for benchmarks, where the server must cost next to nothing (every
// object is encoded once, when it is set), and for tests of how a client takes
// refusals. It checks nothing and knows no selectors but a Node's name.
package fakeapi

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Object is an API object that can encode itself, such as *corev1.Service.
type Object interface {
	runtime.Object
	metav1.Object
	Marshal() ([]byte, error)
}

// Server holds the objects. It is safe for concurrent use.
type Server struct {
	mu       sync.Mutex
	changed  *sync.Cond
	version  int64
	oldest   int64 // versions before this are forgotten
	kinds    map[string]*kind
	refuse   map[string]int
	noStream bool
	broken   int // counts BreakWatches, so that watches notice
	requests []string
}

// kind is a resource: its objects, and what happened to them.
type kind struct {
	typeMeta []byte // runtime.TypeMeta
	listKind []byte
	objects  map[string]object // by namespace/name
	log      []event
}

// object is an object as it is sent.
type object struct {
	raw   []byte // encoded
	frame []byte // as the watch event that adds it
}

type event struct {
	version int64
	name    string
	frame   []byte // length and metav1.WatchEvent
}

// Paths of what is served.
const (
	Services       = "/api/v1/services"
	EndpointSlices = "/apis/discovery.k8s.io/v1/endpointslices"
	Nodes          = "/api/v1/nodes"
	ServiceCIDRs   = "/apis/networking.k8s.io/v1/servicecidrs"
	Namespaces     = "/api/v1/namespaces"
	Pods           = "/api/v1/pods"
)

// New returns an empty Server.
func New() *Server {
	s := &Server{version: 1, oldest: 1, refuse: map[string]int{}, kinds: map[string]*kind{
		Services:       newKind("v1", "Service"),
		EndpointSlices: newKind("discovery.k8s.io/v1", "EndpointSlice"),
		Nodes:          newKind("v1", "Node"),
		ServiceCIDRs:   newKind("networking.k8s.io/v1", "ServiceCIDR"),
		Namespaces:     newKind("v1", "Namespace"),
		Pods:           newKind("v1", "Pod"),
	}}
	s.changed = sync.NewCond(&s.mu)
	return s
}

func newKind(apiVersion, name string) *kind {
	meta := func(k string) []byte { return appendBytes(appendBytes(nil, 1, []byte(apiVersion)), 2, []byte(k)) }
	return &kind{typeMeta: meta(name), listKind: meta(name + "List"), objects: map[string]object{}}
}

// Set creates or replaces an object; it gets a new version.
func (s *Server) Set(path string, o Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	o.SetResourceVersion(strconv.FormatInt(s.version, 10))
	raw, err := o.Marshal()
	if err != nil {
		panic(err) // a typed object always encodes
	}
	k := s.kinds[path]
	name := o.GetNamespace() + "/" + o.GetName()
	added := frame("ADDED", k.typeMeta, raw)
	told := added
	if k.objects[name].raw != nil {
		told = frame("MODIFIED", k.typeMeta, raw)
	}
	k.objects[name] = object{raw, added}
	k.log = append(k.log, event{s.version, name, told})
	s.changed.Broadcast()
}

// Delete removes an object, which is told with its last state.
func (s *Server) Delete(path string, o Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	o.SetResourceVersion(strconv.FormatInt(s.version, 10))
	raw, err := o.Marshal()
	if err != nil {
		panic(err)
	}
	k := s.kinds[path]
	name := o.GetNamespace() + "/" + o.GetName()
	delete(k.objects, name)
	k.log = append(k.log, event{s.version, name, frame("DELETED", k.typeMeta, raw)})
	s.changed.Broadcast()
}

// Forget makes every version up to now too old to watch from.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	s.oldest = s.version
	for _, k := range s.kinds {
		k.log = nil
	}
}

// Refuse answers requests for a path with an HTTP status; zero ends that.
func (s *Server) Refuse(path string, code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse[path] = code
}

// NoStreaming makes the server one that refuses streaming lists, as Kubernetes
// did before 1.32.
func (s *Server) NoStreaming() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noStream = true
}

// BreakWatches ends every watch that is under way.
func (s *Server) BreakWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken++
	s.changed.Broadcast()
}

// Requests returns what has been asked so far, as "path?query".
func (s *Server) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.requests...)
}

// ServeHTTP answers GETs.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.URL.String())
	k := s.kinds[r.URL.Path]
	code, noStream := s.refuse[r.URL.Path], s.noStream
	s.mu.Unlock()
	q := r.URL.Query()
	switch {
	case code != 0:
		http.Error(w, "refused by the test", code)
	case k == nil || r.Method != http.MethodGet:
		http.Error(w, "not served here", http.StatusNotFound)
	case q.Get("watch") == "true":
		if q.Get("sendInitialEvents") == "true" && noStream {
			http.Error(w, "sendInitialEvents: Forbidden", http.StatusUnprocessableEntity)
			return
		}
		s.watch(w, r, k)
	default:
		s.list(w, r, k)
	}
}

func only(r *http.Request) string {
	if n, ok := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name="); ok {
		return "/" + n
	}
	return ""
}

// list answers page by page, in order of names.
func (s *Server) list(w http.ResponseWriter, r *http.Request, k *kind) {
	limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	from, one := r.URL.Query().Get("continue"), only(r)
	s.mu.Lock()
	names := make([]string, 0, len(k.objects))
	for n := range k.objects {
		if n > from && (one == "" || n == one) {
			names = append(names, n)
		}
	}
	sort.Strings(names)
	next := ""
	if limit > 0 && len(names) > limit {
		names = names[:limit]
		next = names[limit-1]
	}
	meta := appendBytes(nil, 2, []byte(strconv.FormatInt(s.version, 10)))
	if next != "" {
		meta = appendBytes(meta, 3, []byte(next))
	}
	list := appendBytes(nil, 1, meta)
	for _, n := range names {
		list = appendBytes(list, 2, k.objects[n].raw)
	}
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf")
	w.Write(envelope(k.listKind, list))
}

// watch sends what happens from a version on, or all there is first.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, k *kind) {
	q := r.URL.Query()
	version, _ := strconv.ParseInt(q.Get("resourceVersion"), 10, 64)
	one := only(r)
	w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf;stream=watch")
	w.WriteHeader(http.StatusOK)
	out := bufio.NewWriterSize(w, 64<<10)
	flush := func() { out.Flush(); w.(http.Flusher).Flush() }

	s.mu.Lock()
	broken := s.broken
	if q.Get("sendInitialEvents") == "true" {
		version = s.version
		initial := make([][]byte, 0, len(k.objects))
		for n, o := range k.objects {
			if one == "" || n == one {
				initial = append(initial, o.frame)
			}
		}
		s.mu.Unlock()
		for _, f := range initial {
			out.Write(f)
		}
		out.Write(bookmark(k, version, true))
		flush()
		s.mu.Lock()
	} else if version < s.oldest {
		s.mu.Unlock()
		out.Write(expired())
		flush()
		return
	}
	defer s.mu.Unlock()
	stop := contextDone(r, s)
	defer stop()
	for {
		i := sort.Search(len(k.log), func(i int) bool { return k.log[i].version > version })
		todo := k.log[i:]
		if len(todo) == 0 {
			if r.Context().Err() != nil || broken != s.broken {
				return
			}
			s.changed.Wait()
			continue
		}
		s.mu.Unlock()
		for _, e := range todo {
			if one == "" || e.name == one {
				out.Write(e.frame)
			}
			version = e.version
		}
		flush()
		s.mu.Lock()
	}
}

// contextDone wakes the watches when the client has gone.
func contextDone(r *http.Request, s *Server) (stop func()) {
	done := make(chan struct{})
	go func() {
		select {
		case <-r.Context().Done():
			s.mu.Lock()
			s.changed.Broadcast()
			s.mu.Unlock()
		case <-done:
		}
	}()
	return func() { close(done) }
}

// bookmark makes an event with nothing but a version.
func bookmark(k *kind, version int64, end bool) []byte {
	meta := appendBytes(nil, 6, []byte(strconv.FormatInt(version, 10)))
	if end {
		entry := appendBytes(appendBytes(nil, 1, []byte(metav1.InitialEventsAnnotationKey)), 2, []byte("true"))
		meta = appendBytes(meta, 12, entry)
	}
	return frame("BOOKMARK", k.typeMeta, appendBytes(nil, 1, meta))
}

func expired() []byte {
	st := metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonExpired, Code: http.StatusGone, Message: "too old resource version"}
	raw, err := st.Marshal()
	if err != nil {
		panic(err)
	}
	return frame("ERROR", appendBytes(appendBytes(nil, 1, []byte("v1")), 2, []byte("Status")), raw)
}

// frame makes a watch event as it goes over the wire: its length, and a
// metav1.WatchEvent with the object in a runtime.RawExtension.
func frame(typ string, typeMeta, raw []byte) []byte {
	object := appendBytes(nil, 1, envelope(typeMeta, raw))
	ev := appendBytes(appendBytes(make([]byte, 4, len(object)+32), 1, []byte(typ)), 2, object)
	binary.BigEndian.PutUint32(ev, uint32(len(ev)-4))
	return ev
}

// envelope makes a runtime.Unknown with Kubernetes' magic before it.
func envelope(typeMeta, raw []byte) []byte {
	b := append(make([]byte, 0, len(raw)+len(typeMeta)+32), "k8s\x00"...)
	b = appendBytes(appendBytes(b, 1, typeMeta), 2, raw)
	return appendBytes(appendBytes(b, 3, nil), 4, nil)
}

// appendBytes appends a length-delimited protobuf field.
func appendBytes(b []byte, num int, data []byte) []byte {
	b = binary.AppendUvarint(b, uint64(num)<<3|2)
	b = binary.AppendUvarint(b, uint64(len(data)))
	return append(b, data...)
}

// String tells what is held.
func (s *Server) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("%d Services, %d EndpointSlices", len(s.kinds[Services].objects), len(s.kinds[EndpointSlices].objects))
}
