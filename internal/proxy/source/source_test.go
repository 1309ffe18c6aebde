package source

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/bench/proxy/fakeapi"
	"fairway.dev/fairway/internal/proxy/state"
)

// world is a Source on a fake API, and what one subscriber has been told.
type world struct {
	t        *testing.T
	api      *fakeapi.Server
	source   *Source
	sub      *Subscription
	services map[state.Name]*state.Service
	slices   map[string]*state.Slice
	node     *Node
	last     Changes
}

func newWorld(t *testing.T, prepare func(*fakeapi.Server)) *world {
	t.Helper()
	api := fakeapi.New()
	if prepare != nil {
		prepare(api)
	}
	srv := httptest.NewServer(api)
	s, err := New(Config{REST: &rest.Config{Host: srv.URL}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, api: api, source: s, sub: s.Subscribe("node-1"),
		services: map[state.Name]*state.Service{}, slices: map[string]*state.Slice{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		srv.CloseClientConnections()
		srv.Close()
	})
	return w
}

// until takes changes until ok is true.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			w.t.Fatalf("never: %s; know Services %v, slices %v", what, w.services, w.slices)
		case <-w.sub.Changed():
		}
		w.last = w.sub.Take()
		for _, c := range w.last.Services {
			if c.New == nil {
				delete(w.services, c.Name)
			} else {
				w.services[c.Name] = c.New
			}
		}
		for _, c := range w.last.Slices {
			if c.Old != nil && w.slices[c.Old.Name] != c.Old {
				w.t.Fatalf("change of slice %s names a version as the old one that was not told", c.Old.Name)
			}
			if c.New == nil {
				delete(w.slices, c.Old.Name)
			} else {
				w.slices[c.New.Name] = c.New
			}
		}
		if w.last.NodeChanged {
			w.node = w.last.Node
		}
	}
}

func (w *world) setService(name string, port int32) {
	s := fullService()
	s.Name, s.Spec.Ports[0].Port = name, port
	w.api.Set(fakeapi.Services, s)
}

func (w *world) has(name string, port uint16) func() bool {
	return func() bool {
		s := w.services[state.Name{Namespace: "ns", Name: name}]
		return s != nil && s.Ports[0].Port == port
	}
}

func (w *world) hasNot(name string) func() bool {
	return func() bool { return w.services[state.Name{Namespace: "ns", Name: name}] == nil }
}

func TestSource(t *testing.T) {
	for _, mode := range []string{"streaming list", "pages"} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, func(api *fakeapi.Server) {
				if mode == "pages" {
					api.NoStreaming()
				}
				for _, n := range []string{"a", "b", "c"} {
					s := fullService()
					s.Name = n
					api.Set(fakeapi.Services, s)
				}
				foreign := fullService()
				foreign.Name, foreign.Labels = "foreign", map[string]string{"service.kubernetes.io/service-proxy-name": "x"}
				api.Set(fakeapi.Services, foreign)
				api.Set(fakeapi.EndpointSlices, fullSlice())
				api.Set(fakeapi.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}})
				api.Set(fakeapi.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-2"}})
				api.Set(fakeapi.ServiceCIDRs, &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/16"}}})
			})
			w.until("first batch", func() bool { return len(w.services) > 0 })
			if len(w.services) != 3 || len(w.slices) != 1 || w.node == nil || len(w.last.ServiceCIDRs) != 1 {
				t.Fatalf("first batch: %+v", w.last)
			}
			w.setService("d", 81)
			w.until("added", w.has("d", 81))
			w.setService("d", 82)
			w.until("changed", w.has("d", 82))
			gone := fullService()
			gone.Name = "a"
			w.api.Delete(fakeapi.Services, gone)
			w.until("deleted", w.hasNot("a"))

			// A watch that ends goes on where it was.
			w.api.BreakWatches()
			w.setService("e", 83)
			w.until("after the watch broke", w.has("e", 83))

			// What happened while the version grew too old is found by listing.
			gone.Name = "b"
			w.setService("f", 84)
			w.api.Delete(fakeapi.Services, gone)
			w.api.Forget()
			w.api.BreakWatches()
			w.until("after a new list", func() bool { return w.has("f", 84)() && w.hasNot("b")() })
			w.setService("f", 85)
			w.until("watching again", w.has("f", 85))

			// It becomes somebody else's.
			s := fullService()
			s.Name, s.Labels = "f", map[string]string{"service.kubernetes.io/service-proxy-name": "x"}
			w.api.Set(fakeapi.Services, s)
			w.until("taken over", w.hasNot("f"))

			sl := fullSlice()
			sl.Endpoints = sl.Endpoints[:1]
			w.api.Set(fakeapi.EndpointSlices, sl)
			w.until("slice changed", func() bool { return len(w.slices["web-abc"].Endpoints) == 1 })
			w.api.Delete(fakeapi.EndpointSlices, sl)
			w.until("slice deleted", func() bool { return len(w.slices) == 0 })

			w.api.Set(fakeapi.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1", Labels: map[string]string{"topology.kubernetes.io/zone": "z"}}})
			w.until("node's zone", func() bool { return w.node.Zone == "z" })

			// A late subscriber gets all there is, in one batch.
			late := w.source.Subscribe("node-2")
			<-late.Changed()
			if c := late.Take(); len(c.Services) != len(w.services) || c.Node == nil || c.Node.Name != "node-2" {
				t.Errorf("late subscriber got %+v, want %d Services", c, len(w.services))
			}
			late.Close()
		})
	}
}

// TestNoNews: what makes no difference to a proxy is not told.
func TestNoNews(t *testing.T) {
	w := newWorld(t, func(api *fakeapi.Server) { api.Set(fakeapi.Services, fullService()) })
	w.until("first batch", func() bool { return len(w.services) == 1 })
	s := fullService()
	s.Annotations["new"] = "annotation"
	w.api.Set(fakeapi.Services, s)
	w.setService("next", 1)
	w.until("the next one", w.has("next", 1))
	if len(w.last.Services) != 1 {
		t.Errorf("told %+v; the change of an annotation is none", w.last.Services)
	}
}

// TestRefusals: ServiceCIDRs may be missing, and trouble passes.
func TestRefusals(t *testing.T) {
	w := newWorld(t, func(api *fakeapi.Server) {
		api.Refuse(fakeapi.ServiceCIDRs, http.StatusForbidden)
		api.Refuse(fakeapi.Services, http.StatusInternalServerError)
		api.Set(fakeapi.Services, fullService())
	})
	select {
	case <-w.source.Synced():
		t.Fatal("synced without having seen a Service")
	case <-time.After(300 * time.Millisecond):
	}
	w.api.Refuse(fakeapi.Services, 0)
	w.until("first batch after the trouble", func() bool { return len(w.services) == 1 })
}

// TestOnlyPermitted: nothing is asked for that the ClusterRole
// system:node-proxier does not permit.
func TestOnlyPermitted(t *testing.T) {
	w := newWorld(t, func(api *fakeapi.Server) { api.Set(fakeapi.Services, fullService()) })
	w.until("first batch", func() bool { return len(w.services) == 1 })
	permitted := []string{fakeapi.Services, fakeapi.EndpointSlices, fakeapi.Nodes, fakeapi.ServiceCIDRs}
	for _, r := range w.api.Requests() {
		path, _, _ := strings.Cut(r, "?")
		ok := false
		for _, p := range permitted {
			ok = ok || p == path
		}
		if !ok {
			t.Errorf("asked for %s", r)
		}
	}
}
