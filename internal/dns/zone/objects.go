package zone

import (
	"net/netip"
	"strings"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"fairway.dev/fairway/internal/dns/wire"
)

// head is the little of an object's metadata that a reflector asks for. The
// interface it embeds is always nil: it only says that a head is a
// metav1.Object, and none of its other methods is called.
type head struct {
	metav1.Object
	ns, name string
	// sync is what the reflector reads once, when the object arrives.
	sync *syncMeta
}

type syncMeta struct {
	resourceVersion string
	annotations     map[string]string
	changed         time.Time // when what caused this state of a slice happened; zero if it does not say
}

func newHead(o metav1.Object) head {
	return head{ns: intern(o.GetNamespace()), name: o.GetName(),
		sync: &syncMeta{resourceVersion: o.GetResourceVersion()}}
}

func (h *head) GetNamespace() string { return h.ns }
func (h *head) GetName() string      { return h.name }

func (h *head) GetResourceVersion() string {
	if h.sync == nil {
		return ""
	}
	return h.sync.resourceVersion
}

func (h *head) GetAnnotations() map[string]string {
	if h.sync == nil {
		return nil
	}
	return h.sync.annotations
}

// GetObjectKind has nothing to tell: these objects are never encoded.
func (h *head) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// settle drops what only the reflector needed.
func (h *head) settle() { h.sync = nil }

// port is a named port of a Service or of a slice.
type port struct {
	name   string // lowercased, empty if it has none
	proto  string // "tcp", "udp" or "sctp"
	number uint16
}

// service is what a name needs of a Service.
type service struct {
	head
	v4  [4]byte
	v6  [16]byte
	has flags
	// ports of the Service itself, for SRV
	ports []port
	// external is an alias's externalName in wire form; nil if that is no name.
	external []byte
}

type flags uint8

const (
	has4 flags = 1 << iota
	has6
	headless
	publishNotReady
	// alias is a Service of type ExternalName, be its externalName of use or not.
	alias
)

func (s *service) DeepCopyObject() runtime.Object { c := *s; return &c }

func newService(o *corev1.Service) *service {
	s := &service{head: newHead(o)}
	if o.Spec.Type == corev1.ServiceTypeExternalName {
		s.has = alias
		name := strings.TrimSuffix(o.Spec.ExternalName, ".")
		// An address in the place of a name is no name (the API's own documentation says so).
		if _, err := netip.ParseAddr(name); err != nil && name != "" {
			if b, ok := wire.AppendName(nil, name); ok {
				s.external = b
			}
		}
		return s
	}
	ips := o.Spec.ClusterIPs
	if len(ips) == 0 && o.Spec.ClusterIP != "" {
		ips = []string{o.Spec.ClusterIP}
	}
	for _, ip := range ips {
		if ip == corev1.ClusterIPNone {
			s.has |= headless
			continue
		}
		a, err := netip.ParseAddr(ip)
		if err != nil {
			continue
		}
		if a.Is4() {
			s.v4, s.has = a.As4(), s.has|has4
		} else {
			s.v6, s.has = a.As16(), s.has|has6
		}
	}
	if o.Spec.PublishNotReadyAddresses {
		s.has |= publishNotReady
	}
	for _, p := range o.Spec.Ports {
		s.ports = append(s.ports, port{intern(strings.ToLower(p.Name)), protocol(p.Protocol), uint16(p.Port)})
	}
	return s
}

func protocol(p corev1.Protocol) string {
	if p == "" {
		return "tcp"
	}
	return intern(strings.ToLower(string(p)))
}

// slice is what names need of an EndpointSlice.
type slice struct {
	head
	service string // the name of the Service it belongs to
	ports   []port
	// addrs holds the endpoints' addresses one after the other, size bytes each.
	addrs []byte
	size  uint8 // 4 or 16
	// notReady has a bit for each endpoint; nil when all are ready.
	notReady []uint64
	// hosts has each endpoint's own hostname, lowercased, empty where it has
	// none; nil when none has one.
	hosts []string
}

func (s *slice) DeepCopyObject() runtime.Object { c := *s; return &c }

func (s *slice) len() int {
	if s.size == 0 {
		return 0
	}
	return len(s.addrs) / int(s.size)
}

func (s *slice) addr(i int) []byte { return s.addrs[i*int(s.size) : (i+1)*int(s.size)] }

func (s *slice) ready(i int) bool {
	return s.notReady == nil || s.notReady[i/64]&(1<<(i%64)) == 0
}

func (s *slice) host(i int) string {
	if s.hosts == nil {
		return ""
	}
	return s.hosts[i]
}

func newSlice(o *discoveryv1.EndpointSlice) *slice {
	s := &slice{head: newHead(o), service: intern(o.Labels[discoveryv1.LabelServiceName])}
	switch o.AddressType {
	case discoveryv1.AddressTypeIPv4:
		s.size = 4
	case discoveryv1.AddressTypeIPv6:
		s.size = 16
	default: // FQDN: nothing that a name could lead to
		return s
	}
	if t, err := time.Parse(time.RFC3339Nano, o.Annotations[corev1.EndpointsLastChangeTriggerTime]); err == nil {
		s.sync.changed = t
	}
	for _, p := range o.Ports {
		if p.Port == nil {
			continue
		}
		q := port{number: uint16(*p.Port), proto: "tcp"}
		if p.Name != nil {
			q.name = intern(strings.ToLower(*p.Name))
		}
		if p.Protocol != nil {
			q.proto = protocol(*p.Protocol)
		}
		s.ports = append(s.ports, q)
	}
	s.addrs = make([]byte, 0, len(o.Endpoints)*int(s.size))
	n := 0
	for _, e := range o.Endpoints {
		if len(e.Addresses) == 0 {
			continue
		}
		// Several addresses of one endpoint are interchangeable; the first stands for it.
		a, err := netip.ParseAddr(e.Addresses[0])
		if err != nil || a.Is4() != (s.size == 4) {
			continue
		}
		s.addrs = append(s.addrs, a.AsSlice()...)
		if r := e.Conditions.Ready; r != nil && !*r {
			for len(s.notReady) <= n/64 {
				s.notReady = append(s.notReady, 0)
			}
			s.notReady[n/64] |= 1 << (n % 64)
		}
		if e.Hostname != nil && *e.Hostname != "" {
			for len(s.hosts) < n {
				s.hosts = append(s.hosts, "")
			}
			s.hosts = append(s.hosts, strings.ToLower(*e.Hostname))
		}
		n++
	}
	if s.notReady != nil {
		for len(s.notReady) <= n/64 {
			s.notReady = append(s.notReady, 0)
		}
	}
	if s.hosts != nil {
		for len(s.hosts) < n {
			s.hosts = append(s.hosts, "")
		}
	}
	return s
}

// pod is what a Pod's own name needs of it.
type pod struct {
	head
	addrs [][16]byte
}

func (p *pod) DeepCopyObject() runtime.Object { c := *p; return &c }

func newPod(o *corev1.Pod) *pod {
	p := &pod{head: newHead(o)}
	if o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed {
		return p
	}
	for _, ip := range o.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			p.addrs = append(p.addrs, a.As16())
		}
	}
	return p
}

// namespace is a Namespace: that it is there is all there is to know.
type namespace struct{ head }

func (n *namespace) DeepCopyObject() runtime.Object { c := *n; return &c }

func newNamespace(o *corev1.Namespace) *namespace { return &namespace{newHead(o)} }

// intern gives equal strings one copy: namespaces and port names repeat by the
// ten thousand.
func intern(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}
