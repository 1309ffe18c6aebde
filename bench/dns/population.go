package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/bench/proxy/fakeapi"
)

// world is a cluster full of odd things, each of which an API server takes.
type world struct {
	api      *fakeapi.Server
	rnd      *rand.Rand
	spaces   map[string]*corev1.Namespace
	services map[string]*corev1.Service // by namespace/name
	slices   map[string]*discoveryv1.EndpointSlice
	pods     map[string]*corev1.Pod
	serial   int
	// ends are the endpoints' addresses so far, for Pods behind several Services.
	ends []string
}

func newWorld(api *fakeapi.Server, seed uint64) *world {
	w := &world{api: api, rnd: rand.New(rand.NewPCG(seed, 1)), spaces: map[string]*corev1.Namespace{}, services: map[string]*corev1.Service{},
		slices: map[string]*discoveryv1.EndpointSlice{}, pods: map[string]*corev1.Pod{}}
	// Names that are also words of the schema, or look like other things.
	for _, ns := range []string{"default", "kube-system", "svc", "pod", "10-244-0-1", "empty"} {
		w.spaces[ns] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}
		api.Set(fakeapi.Namespaces, w.spaces[ns])
	}
	w.nameServer()
	for _, ns := range []string{"default", "svc", "pod", "10-244-0-1"} {
		for _, name := range []string{"svc", "pod", "dns", "ns", "any", "a", "web-1"} {
			w.add(ns, name)
		}
		for range 8 {
			w.add(ns, fmt.Sprintf("s%d", w.next()))
		}
		for range 5 {
			w.addPod(ns)
		}
	}
	return w
}

func (w *world) next() int { w.serial++; return w.serial }

// one reports true once in n times.
func (w *world) one(n int) bool { return w.rnd.IntN(n) == 0 }

func pick[T any](w *world, of ...T) T { return of[w.rnd.IntN(len(of))] }

// some is a random one of a map's keys, of the sorted ones so that a seed gives the same each time.
func some[T any](w *world, m map[string]T) string {
	return pick(w, slices.Sorted(maps.Keys(m))...)
}

// nameServer makes the Service kube-dns with both servers' address behind it:
// CoreDNS finds out by that which Service is its own.
func (w *world) nameServer() {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "kube-dns", Namespace: "kube-system"},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.10", ClusterIPs: []string{"10.96.0.10", "fd00:96::a"},
			Ports: []corev1.ServicePort{{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}, {Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP}}}}
	es := w.slice(svc, "kube-dns-1", discoveryv1.AddressTypeIPv4, serverAddr)
	w.setService(svc)
	w.setSlice(es)
}

func key(o metav1.Object) string { return o.GetNamespace() + "/" + o.GetName() }

func (w *world) setService(s *corev1.Service) {
	w.services[key(s)] = s
	w.api.Set(fakeapi.Services, s)
}

func (w *world) setSlice(s *discoveryv1.EndpointSlice) {
	w.slices[key(s)] = s
	w.api.Set(fakeapi.EndpointSlices, s)
}

// clusterIPs are fresh addresses of one or both families, in either order.
func (w *world) clusterIPs() []string {
	n := w.next()
	v4, v6 := fmt.Sprintf("10.96.%d.%d", 1+n/250, 1+n%250), fmt.Sprintf("fd00:96::%x", 0x100+n)
	if w.one(8) {
		v6 = fmt.Sprintf("fd00:96:0:%x::", n) // ends with zeros
	}
	return pick(w, []string{v4}, []string{v4}, []string{v6}, []string{v4, v6}, []string{v6, v4})
}

// add makes a Service of any kind, and what is behind it.
func (w *world) add(ns, name string) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns}}
	w.fill(svc)
	w.setService(svc)
	if svc.Spec.Type != corev1.ServiceTypeExternalName {
		w.addSlices(svc)
	}
}

// fill gives a Service another spec.
func (w *world) fill(svc *corev1.Service) {
	svc.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, Ports: w.ports()}
	switch w.rnd.IntN(10) {
	case 0, 1, 2, 3:
		svc.Spec.ClusterIPs = w.clusterIPs()
		svc.Spec.Type = pick(w, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer)
	case 4, 5, 6, 7:
		svc.Spec.ClusterIPs = []string{corev1.ClusterIPNone}
		if w.one(4) {
			svc.Spec.Ports = nil // headless ones need none
		}
	default:
		svc.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: w.externalName()}
		return
	}
	svc.Spec.ClusterIP = svc.Spec.ClusterIPs[0]
	svc.Spec.PublishNotReadyAddresses = w.one(4)
	if w.one(2) {
		svc.Spec.Selector = map[string]string{"app": svc.Name}
	}
}

func (w *world) externalName() string {
	other := some(w, w.services)
	ns, name, _ := strings.Cut(other, "/")
	return pick(w, "www.example.com", "www.example.com.", "alias.example.com", "gone.example.com", "none.example.com",
		name+"."+ns+".svc.cluster.local", name+"."+ns+".svc.cluster.local", name+"."+ns+".svc.cluster.local.", "nothing.default.svc.cluster.local", "203.0.113.7", "single")
}

// ports are a Service's: at most one without a name, and then alone.
func (w *world) ports() []corev1.ServicePort {
	protocols := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	if w.one(4) {
		return []corev1.ServicePort{{Port: 8080, Protocol: pick(w, protocols...)}}
	}
	var out []corev1.ServicePort
	if w.one(3) { // one name may not be there twice, but one number may
		for i, name := range []string{"dns", "dns-tcp", "dns-sctp"} {
			out = append(out, corev1.ServicePort{Name: name, Port: 53, Protocol: protocols[i]})
		}
		return out
	}
	for i := range 1 + w.rnd.IntN(3) {
		out = append(out, corev1.ServicePort{Name: fmt.Sprintf("%s%d", pick(w, "http", "p-", "x"), i), Port: int32(80 + i), Protocol: pick(w, protocols...)})
	}
	return out
}

// slice makes a slice of a Service with the Service's ports and these addresses.
func (w *world) slice(svc *corev1.Service, name string, family discoveryv1.AddressType, addrs ...string) *discoveryv1.EndpointSlice {
	es := &discoveryv1.EndpointSlice{AddressType: family,
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: svc.Namespace, Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name}}}
	for _, p := range svc.Spec.Ports {
		port := p.Port + 8000
		es.Ports = append(es.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &port})
	}
	for _, a := range addrs {
		es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return es
}

// addSlices makes up to three slices, of either family, for a Service.
func (w *world) addSlices(svc *corev1.Service) {
	for range w.rnd.IntN(4) {
		es := w.slice(svc, fmt.Sprintf("%s-%d", svc.Name, w.next()), pick(w, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6))
		if w.one(12) {
			es.AddressType = discoveryv1.AddressTypeFQDN
			es.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"host.example.com"}}}
		} else {
			w.fillSlice(svc, es)
		}
		switch w.rnd.IntN(10) {
		case 0:
			es.Ports = nil
		case 1: // no port number: all ports
			for i := range es.Ports {
				es.Ports[i].Port = nil
			}
		case 2:
			for i := range es.Ports {
				es.Ports[i].Name = nil
			}
		}
		w.setSlice(es)
	}
}

// fillSlice gives a slice other endpoints.
func (w *world) fillSlice(svc *corev1.Service, es *discoveryv1.EndpointSlice) {
	es.Endpoints = nil
	yes, no := true, false
	n := w.rnd.IntN(5)
	if w.one(15) {
		n = 40 // more than a datagram holds
	}
	named := w.one(2) && svc.Spec.ClusterIP == corev1.ClusterIPNone
	for i := range n {
		addr := w.endpoint(es.AddressType)
		e := discoveryv1.Endpoint{Addresses: []string{addr}, Conditions: pick(w,
			discoveryv1.EndpointConditions{},
			discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
			discoveryv1.EndpointConditions{Ready: &yes},
			discoveryv1.EndpointConditions{Ready: &no, Serving: &no},
			discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes})}
		if svc.Spec.PublishNotReadyAddresses && !w.one(5) { // as the slice controller has it
			e.Conditions.Ready = &yes
		}
		if named && !w.one(6) {
			host := fmt.Sprintf("%s-%d", svc.Name, i/2*(1+w.rnd.IntN(2)))
			e.Hostname = &host
		}
		es.Endpoints = append(es.Endpoints, e)
	}
}

// endpoint is an address, one in six another Service's too.
func (w *world) endpoint(family discoveryv1.AddressType) string {
	six := family == discoveryv1.AddressTypeIPv6
	if w.one(6) {
		for range 10 {
			if len(w.ends) == 0 {
				break
			}
			if a := pick(w, w.ends...); netip.MustParseAddr(a).Is6() == six {
				return a
			}
		}
	}
	n := w.next()
	a := fmt.Sprintf("10.244.%d.%d", n/250, n%250)
	if six {
		a = pick(w, fmt.Sprintf("fd00:244::%x", n), fmt.Sprintf("fd00:244:0:%x::", n), fmt.Sprintf("fd00:244:1:2:3:4:5:%x", n), fmt.Sprintf("fd00:244::%x:0:0:1", n))
	}
	w.ends = append(w.ends, a)
	return a
}

func (w *world) addPod(ns string) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("pod-%d", w.next()), Namespace: ns}}
	w.fillPod(p)
	w.pods[key(p)] = p
	w.api.Set(fakeapi.Pods, p)
}

func (w *world) fillPod(p *corev1.Pod) {
	v4, v6 := w.endpoint(discoveryv1.AddressTypeIPv4), w.endpoint(discoveryv1.AddressTypeIPv6)
	p.Status = corev1.PodStatus{Phase: pick(w, corev1.PodRunning, corev1.PodRunning, corev1.PodPending, corev1.PodSucceeded, corev1.PodFailed)}
	if w.one(6) {
		return // has none yet
	}
	p.Status.PodIPs = pick(w, []corev1.PodIP{{IP: v4}}, []corev1.PodIP{{IP: v6}}, []corev1.PodIP{{IP: v4}, {IP: v6}})
	p.Status.PodIP = p.Status.PodIPs[0].IP
}

// change does one thing that happens to clusters.
func (w *world) change() {
	k := some(w, w.services)
	svc := w.services[k].DeepCopy()
	mine := func() *discoveryv1.EndpointSlice {
		for _, name := range slices.Sorted(maps.Keys(w.slices)) {
			if es := w.slices[name]; es.Namespace == svc.Namespace && es.Labels[discoveryv1.LabelServiceName] == svc.Name && es.AddressType != discoveryv1.AddressTypeFQDN {
				return es.DeepCopy()
			}
		}
		return nil
	}
	switch what := w.rnd.IntN(12); {
	case svc.Name == "kube-dns":
	case what == 0: // gone; its slices may stay for a while
		w.api.Delete(fakeapi.Services, svc)
		delete(w.services, k)
		for es := mine(); es != nil && !w.one(8); es = mine() {
			w.api.Delete(fakeapi.EndpointSlices, es)
			delete(w.slices, key(es))
		}
	case what == 1:
		w.fill(svc) // deleted and made anew, or edited
		w.setService(svc)
	case what == 2 && svc.Spec.Type != corev1.ServiceTypeExternalName:
		svc.Spec.Ports = w.ports()
		w.setService(svc)
	case what == 3:
		svc.Spec.PublishNotReadyAddresses = !svc.Spec.PublishNotReadyAddresses
		w.setService(svc)
	case what == 4:
		w.addSlices(svc)
	case what == 5:
		w.add(pick(w, "default", "svc", "pod", "empty"), fmt.Sprintf("s%d", w.next()))
	case what == 6 && len(w.pods) > 0:
		p := w.pods[some(w, w.pods)].DeepCopy()
		w.fillPod(p)
		w.pods[key(p)] = p
		w.api.Set(fakeapi.Pods, p)
	case what == 7 && len(w.pods) > 0:
		p := w.pods[some(w, w.pods)].DeepCopy()
		w.api.Delete(fakeapi.Pods, p)
		delete(w.pods, key(p))
		w.addPod("default")
	default:
		es := mine()
		switch {
		case es == nil:
		case what == 8:
			w.api.Delete(fakeapi.EndpointSlices, es)
			delete(w.slices, key(es))
		case what == 9: // another Service's from now on
			other := some(w, w.services)
			if ns, name, _ := strings.Cut(other, "/"); ns == es.Namespace && name != "kube-dns" {
				es.Labels[discoveryv1.LabelServiceName] = name
				w.setSlice(es)
			}
		default:
			w.fillSlice(svc, es)
			w.setSlice(es)
		}
	}
}
