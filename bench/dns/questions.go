package main

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// transport is how a question is asked.
type transport string

const (
	plainUDP transport = "UDP"
	ednsUDP  transport = "UDP with EDNS"
	largeUDP transport = "UDP with EDNS for 4096 bytes and DO"
	overTCP  transport = "TCP"
	oddFlags transport = "UDP without RD, with CD, AD and an unknown EDNS option"
)

// question is one question, and what kind of name it is about.
type question struct {
	kind string
	name string
	typ  uint16
	how  transport
}

func (q question) String() string {
	return fmt.Sprintf("%s %s over %s", q.name, dns.TypeToString[q.typ], q.how)
}

var asked = []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeTXT, dns.TypeNS, dns.TypeSOA, dns.TypeCNAME, dns.TypeANY, dns.TypeMX, dns.TypeHTTPS, dns.TypeDS}

const zoneName = "cluster.local."

var dashes = strings.NewReplacer(".", "-", ":", "-")

// names collects names, each once, with what kind of name it is.
type names struct{ kinds map[string]string }

func (n *names) add(kind, format string, args ...any) {
	name := fmt.Sprintf(format, args...)
	if _, ok := dns.IsDomainName(name); ok && n.kinds[name] == "" {
		n.kinds[name] = kind
	}
}

// questions asks every type of every name that is there and of many that are not.
func (w *world) questions() []question {
	n := &names{kinds: map[string]string{}}
	n.zone()
	for _, k := range slices.Sorted(maps.Keys(w.services)) {
		w.serviceNames(n, w.services[k])
	}
	for _, k := range slices.Sorted(maps.Keys(w.slices)) {
		w.sliceNames(n, w.slices[k])
	}
	for _, k := range slices.Sorted(maps.Keys(w.pods)) {
		for _, ip := range w.pods[k].Status.PodIPs {
			for _, ns := range []string{w.pods[k].Namespace, "kube-system"} {
				n.add(w.podKind(ns, ip.IP), "%s.%s.pod.%s", dashes.Replace(ip.IP), ns, zoneName)
			}
			n.reverse("reverse of a Pod", ip.IP)
		}
		n.add("Pod's own name", "%s.%s.pod.%s", w.pods[k].Name, w.pods[k].Namespace, zoneName)
	}
	for _, ns := range slices.Sorted(maps.Keys(w.spaces)) {
		n.space(ns)
	}
	var out []question
	for _, name := range slices.Sorted(maps.Keys(n.kinds)) {
		for _, typ := range asked {
			how := ednsUDP
			if w.one(3) {
				how = pick(w, plainUDP, largeUDP, overTCP, oddFlags)
			}
			ask := name
			if w.one(10) {
				ask = mixCase(w, name)
			}
			out = append(out, question{n.kinds[name], ask, typ, how})
		}
	}
	return out
}

func mixCase(w *world, s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'a' && c <= 'z' && w.one(2) {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

// zone adds the zone's own names, and some outside.
func (n *names) zone() {
	n.add("zone", zoneName)
	for _, l := range []string{"svc", "pod"} {
		n.add("top label", "%s.%s", l, zoneName)
	}
	n.add("name server", "ns.dns.%s", zoneName)
	n.add("above the name server", "dns.%s", zoneName)
	n.add("dns-version", "dns-version.%s", zoneName)
	for _, l := range []string{"x.dns-version", "nosuch", "*", "any", "default", "a.b.c.d.e.f", "x.ns.dns", "_tcp", "web.default", "autodiscover", "localhost"} {
		n.add("nothing in the zone", "%s.%s", l, zoneName)
	}
	for _, name := range slices.Sorted(maps.Keys(outside)) {
		n.add("outside", "%s", name)
	}
	n.add("outside", "gone.example.com.")
	n.add("outside", "local.")
	n.add("outside", ".")
	n.add("outside", "xcluster.local.")
	n.add("outside", "cluster.local.example.com.")
	for _, ip := range []string{"10.96.255.1", "10.244.255.1", "192.0.2.80", "fd00:96::ffff", "2001:db8::80"} {
		n.reverse("reverse of nothing", ip)
	}
	n.add("half a reverse name", "96.10.in-addr.arpa.")
	n.add("half a reverse name", "in-addr.arpa.")
	n.add("half a reverse name", "0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.")
	n.add("odd reverse name", "x.0.96.10.in-addr.arpa.")
	n.add("odd reverse name", "300.0.96.10.in-addr.arpa.")
	n.add("odd reverse name", "1.10.0.96.10.in-addr.arpa.")
}

func (n *names) space(ns string) {
	below := ns + ".svc." + zoneName
	n.add("namespace", "%s", below)
	n.add("namespace of Pods", "%s.pod.%s", ns, zoneName)
	for _, l := range []string{"nosuch", "*", "any", "_tcp", "_http", "www.example.com", "a.b.c", "a.b.c.d", "_http._tcp.nosuch", "x.nosuch"} {
		n.add("no such Service", "%s.%s", l, below)
	}
	n.add("no such namespace", "a.nosuch-%s.svc.%s", ns, zoneName)
	n.add("no such namespace", "nosuch-%s.svc.%s", ns, zoneName)
	n.add("no such namespace of Pods", "10-244-0-1.nosuch-%s.pod.%s", ns, zoneName)
	n.add("no such namespace of Pods", "nosuch-%s.pod.%s", ns, zoneName)
	for _, l := range []string{"10-244-250-250", "0-0-0-0", "255-255-255-255", "fd00-244--77", "--1", "1--", "--", "1-2-3-4-5-6-7-8"} {
		n.add("address as a Pod's name", "%s.%s.pod.%s", l, ns, zoneName)
	}
	for _, l := range []string{"10-244-1", "256-1-1-1", "01-2-3-4", "10-244-1-1-1", "x", "*", "any", "fd00-244-77", "x.10-244-1-1", "_http._tcp.10-244-1-1"} {
		n.add("no address as a Pod's name", "%s.%s.pod.%s", l, ns, zoneName)
	}
}

func (n *names) reverse(kind, ip string) {
	if _, err := netip.ParseAddr(ip); err != nil {
		return
	}
	r, err := dns.ReverseAddr(ip)
	if err != nil {
		return
	}
	n.add(kind, "%s", r)
	n.add("below a reverse name", "x.%s", r)
}

// serviceKind says what is behind a Service, as far as names depend on it.
func (w *world) serviceKind(s *corev1.Service) string { return w.kindOf(s, 0) }

func (w *world) kindOf(s *corev1.Service, depth int) string {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		if _, err := netip.ParseAddr(s.Spec.ExternalName); err == nil {
			return "ExternalName with an address"
		}
		inside, ok := strings.CutSuffix(strings.TrimSuffix(s.Spec.ExternalName, "."), ".svc."+strings.TrimSuffix(zoneName, "."))
		if !ok {
			return "ExternalName"
		}
		name, ns, _ := strings.Cut(inside, ".")
		target := w.services[ns+"/"+name]
		if target != nil && (depth > 8 || strings.Contains(w.kindOf(target, depth+1), " with ")) {
			return "ExternalName inside, of a Service with odd things"
		}
		return "ExternalName inside"
	}
	kind, ready, hidden := "ClusterIP", false, false
	for _, es := range w.slices {
		if es.Namespace != s.Namespace || es.Labels[discoveryv1.LabelServiceName] != s.Name {
			continue
		}
		if es.AddressType == discoveryv1.AddressTypeFQDN {
			return "Service with a slice of names"
		}
		for _, e := range es.Endpoints {
			if e.Conditions.Ready == nil || *e.Conditions.Ready {
				ready = true
			} else if s.Spec.PublishNotReadyAddresses {
				hidden = true
			}
		}
	}
	switch {
	case s.Spec.ClusterIP == corev1.ClusterIPNone && !ready && !hidden:
		return "headless without endpoints"
	case s.Spec.ClusterIP == corev1.ClusterIPNone:
		kind = "headless"
	}
	if hidden {
		kind += " with unready endpoints to publish"
	}
	return kind
}

func (w *world) serviceNames(n *names, s *corev1.Service) {
	kind := w.serviceKind(s)
	name := s.Name + "." + s.Namespace + ".svc." + zoneName
	n.add(kind, "%s", name)
	n.add("of Pods, but a "+kind+"'s", "%s.%s.pod.%s", s.Name, s.Namespace, zoneName)
	for _, ip := range s.Spec.ClusterIPs {
		n.reverse("reverse of a ClusterIP", ip)
	}
	protocols := map[string]bool{}
	w.portNames(n, kind, name, s.Spec.Ports, protocols)
	for _, es := range w.slices {
		if es.Namespace != s.Namespace || es.Labels[discoveryv1.LabelServiceName] != s.Name || s.Spec.ClusterIP != corev1.ClusterIPNone {
			continue
		}
		var ports []corev1.ServicePort
		for _, p := range es.Ports {
			port := corev1.ServicePort{Protocol: *p.Protocol}
			if p.Name != nil {
				port.Name = *p.Name
			}
			ports = append(ports, port)
		}
		w.portNames(n, kind, name, ports, protocols)
	}
	for _, p := range []string{"tcp", "udp", "sctp"} {
		n.add(kind+": no such port", "_nosuch._%s.%s", p, name)
		n.add(kind+": port without a name", "_._%s.%s", p, name)
		if !protocols[p] {
			n.add(kind+": no such protocol alone", "_%s.%s", p, name)
		}
	}
	for _, l := range []string{"nosuch", "*", "any", "10-0-0-1", "fd00--1", "_", "_x", "nosuch._tcp", "x.x", "_http._tcp.x", "a.b.c.d.e"} {
		n.add(kind+": nothing below", "%s.%s", l, name)
	}
}

func (w *world) portNames(n *names, kind, name string, ports []corev1.ServicePort, protocols map[string]bool) {
	for _, p := range ports {
		proto := strings.ToLower(string(p.Protocol))
		if p.Name == "" {
			continue
		}
		protocols[proto] = true
		n.add(kind+": port", "_%s._%s.%s", p.Name, proto, name)
		n.add(kind+": protocol alone", "_%s.%s", proto, name)
		n.add(kind+": port without underscores", "%s.%s.%s", p.Name, proto, name)
		n.add(kind+": below a port", "x._%s._%s.%s", p.Name, proto, name)
		n.add(kind+": port by number", "_%d._%s.%s", p.Port, proto, name)
	}
}

func (w *world) sliceNames(n *names, es *discoveryv1.EndpointSlice) {
	s := w.services[es.Namespace+"/"+es.Labels[discoveryv1.LabelServiceName]]
	kind := "no Service"
	if s != nil {
		kind = w.serviceKind(s)
	}
	name := es.Labels[discoveryv1.LabelServiceName] + "." + es.Namespace + ".svc." + zoneName
	for _, e := range es.Endpoints {
		state := ""
		if e.Conditions.Ready != nil && !*e.Conditions.Ready {
			state = ", not ready"
		}
		addr, err := netip.ParseAddr(e.Addresses[0])
		if err != nil {
			continue
		}
		n.reverse(w.reverseKind(addr), addr.String())
		dashed := dashes.Replace(addr.String())
		if e.Hostname != nil {
			n.add(kind+": hostname"+state, "%s.%s", *e.Hostname, name)
			n.add(kind+": port of a hostname", "_http0._tcp.%s.%s", *e.Hostname, name)
			if strings.HasSuffix(dashed, "-") {
				state = ", a dash at its end" + state
			}
			n.add(kind+": address of an endpoint with a hostname"+state, "%s.%s", dashed, name)
			continue
		}
		if strings.HasSuffix(dashed, "-") {
			n.add(kind+": endpoint's address, a dash at its end"+state, "%s.%s", dashed, name)
			dashed += "0"
		}
		n.add(kind+": endpoint's address"+state, "%s.%s", dashed, name)
		n.add(w.podKind(es.Namespace, addr.String()), "%s.%s.pod.%s", dashed, es.Namespace, zoneName)
	}
}

// podKind says what an address is in a namespace of Pods.
func (w *world) podKind(ns, ip string) string {
	kind := "address as a Pod's name"
	for _, p := range w.pods {
		for _, i := range p.Status.PodIPs {
			switch {
			case p.Namespace != ns || i.IP != ip:
			case p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed:
				return "Pod's name"
			default:
				kind = "finished Pod's name"
			}
		}
	}
	return kind
}

// reverseKind says what is at an address, as far as its names depend on it.
func (w *world) reverseKind(addr netip.Addr) string {
	services := map[string]bool{}
	useless, hidden := false, false
	for _, es := range w.slices {
		s := w.services[es.Namespace+"/"+es.Labels[discoveryv1.LabelServiceName]]
		for _, e := range es.Endpoints {
			if a, err := netip.ParseAddr(e.Addresses[0]); err != nil || a != addr {
				continue
			}
			services[es.Namespace+"/"+es.Labels[discoveryv1.LabelServiceName]] = true
			useless = useless || s == nil || s.Spec.Type == corev1.ServiceTypeExternalName
			hidden = hidden || s != nil && s.Spec.PublishNotReadyAddresses && e.Conditions.Ready != nil && !*e.Conditions.Ready
		}
	}
	switch {
	case useless:
		return "reverse of an endpoint whose Service is gone"
	case hidden && len(services) > 1:
		return "reverse of an unready endpoint to publish of several Services"
	case hidden:
		return "reverse of an unready endpoint to publish"
	case len(services) > 1:
		return "reverse of an endpoint of several Services"
	}
	return "reverse of an endpoint"
}
