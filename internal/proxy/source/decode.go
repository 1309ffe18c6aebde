package source

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unsafe"

	netutils "k8s.io/utils/net"

	"fairway.dev/fairway/internal/proxy/state"
)

// Names of labels, annotations and taints that mean something to a proxy.
const (
	labelServiceName  = "kubernetes.io/service-name"
	labelProxyName    = "service.kubernetes.io/service-proxy-name"
	labelHeadless     = "service.kubernetes.io/headless"
	labelZone         = "topology.kubernetes.io/zone"
	annotationTrigger = "endpoints.kubernetes.io/last-change-trigger-time"
	// taintToBeDeleted is set by the cluster autoscaler on a node it is about
	// to remove.
	taintToBeDeleted = "ToBeDeletedByClusterAutoscaler"
	annotationEnd    = "k8s.io/initial-events-end"
)

// objectKey names an object of a kind.
type objectKey struct {
	namespace, name string
}

// objectMeta is what is needed of an object's metadata.
type objectMeta struct {
	objectKey
	version string
	// Of the labels and annotations, those named above.
	service, zone string
	foreign       bool // labelled as another proxy's, or headless
	trigger       time.Time
	endOfInitial  bool
	beingDeleted  bool
}

// decoder turns the protobuf encoding of API objects (k8s.io/api/*/generated.proto
// names the fields) into package state's types. Strings that come often are
// kept once. It is not safe for concurrent use.
type decoder struct {
	strings map[string]string
	hints   map[string]*state.Hints
	eps     []state.Endpoint
}

func newDecoder() *decoder {
	return &decoder{strings: map[string]string{}, hints: map[string]*state.Hints{}}
}

// maxInterned bounds the tables of strings kept once; nodes and zones come and
// go, so beyond it a table starts anew.
const maxInterned = 1 << 16

// intern returns b as a string, the same one for the same bytes.
func (d *decoder) intern(b []byte) string {
	if s, ok := d.strings[string(b)]; ok {
		return s
	}
	if len(d.strings) >= maxInterned {
		clear(d.strings)
	}
	s := string(b)
	d.strings[s] = s
	return s
}

// meta decodes ObjectMeta.
func (d *decoder) meta(b []byte) (m objectMeta, err error) {
	w := fields(b)
	for w.next() {
		switch w.num {
		case 1:
			m.name = string(w.data)
		case 3:
			m.namespace = d.intern(w.data)
		case 6:
			m.version = string(w.data)
		case 9:
			m.beingDeleted = true
		case 11, 12:
			key, value, err := mapEntry(w.data)
			if err != nil {
				return m, err
			}
			switch key {
			case labelServiceName:
				m.service = string(value)
			case labelZone:
				m.zone = d.intern(value)
			case labelProxyName, labelHeadless:
				m.foreign = m.foreign || w.num == 11
			case annotationTrigger:
				// A malformed one is as good as none, as in kube-proxy.
				m.trigger, _ = time.Parse(time.RFC3339Nano, string(value))
			case annotationEnd:
				m.endOfInitial = string(value) == "true"
			}
		}
	}
	return m, w.err
}

// mapEntry decodes an entry of a map<string, string>. key is valid as long as b.
func mapEntry(b []byte) (key string, value []byte, err error) {
	w := fields(b)
	for w.next() {
		switch w.num {
		case 1:
			key = unsafe.String(unsafe.SliceData(w.data), len(w.data))
		case 2:
			value = w.data
		}
	}
	return key, value, w.err
}

// addr parses an IP address as leniently as Kubernetes does.
func addr(b []byte) (netip.Addr, error) {
	// ParseAddr keeps its argument in errors only, and in zones, which an API
	// object's address cannot have.
	a, err := netip.ParseAddr(unsafe.String(unsafe.SliceData(b), len(b)))
	if err == nil && a.Zone() == "" {
		return a.Unmap(), nil
	}
	if a, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(string(b))); ok {
		return a.Unmap(), nil
	}
	return netip.Addr{}, fmt.Errorf("%q is not an IP address", b)
}

// prefix parses a CIDR as leniently as Kubernetes does, spaces around it
// included, and masks it.
func prefix(b []byte) (netip.Prefix, error) {
	s := strings.TrimSpace(string(b))
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked(), nil
	}
	if _, n, err := netutils.ParseCIDRSloppy(s); err == nil {
		ones, _ := n.Mask.Size()
		a, _ := netip.AddrFromSlice(n.IP)
		return netip.PrefixFrom(a.Unmap(), ones).Masked(), nil
	}
	return netip.Prefix{}, fmt.Errorf("%q is not a CIDR", b)
}

func protocol(b []byte) state.Protocol {
	switch string(b) {
	case "UDP":
		return state.UDP
	case "SCTP":
		return state.SCTP
	}
	return state.TCP
}

func port(v uint64) uint16 {
	if v > 65535 {
		return 0
	}
	return uint16(v)
}

// slice decodes an EndpointSlice. It returns nil if it is none of ours.
func (d *decoder) slice(b []byte) (m objectMeta, s *state.Slice, err error) {
	s = &state.Slice{}
	d.eps = d.eps[:0]
	var foreignType bool
	w := fields(b)
	for w.next() {
		switch w.num {
		case 1:
			if m, err = d.meta(w.data); err != nil {
				return m, nil, fmt.Errorf("metadata: %w", err)
			}
		case 2:
			ep, ok, err := d.endpoint(w.data)
			if err != nil {
				return m, nil, fmt.Errorf("endpoint %d: %w", len(d.eps), err)
			}
			if ok {
				d.eps = append(d.eps, ep)
			}
		case 3:
			p, named, err := d.slicePort(w.data)
			if err != nil {
				return m, nil, fmt.Errorf("port %d: %w", len(s.Ports), err)
			}
			if named {
				s.Ports = append(s.Ports, p)
			}
		case 4:
			s.V6 = string(w.data) == "IPv6"
			foreignType = !s.V6 && string(w.data) != "IPv4"
		}
	}
	if w.err != nil || foreignType || m.foreign || m.service == "" {
		return m, nil, w.err
	}
	s.Namespace, s.Name, s.Service, s.Trigger = m.namespace, m.name, m.service, m.trigger
	if len(d.eps) > 0 {
		s.Endpoints = make([]state.Endpoint, 0, len(d.eps))
		for _, ep := range d.eps {
			if ep.Addr.Is6() == s.V6 { // an address of the wrong family is of no use
				s.Endpoints = append(s.Endpoints, ep)
			}
		}
	}
	return m, s, nil
}

// endpoint decodes an Endpoint; ok is false if it has no usable address. Only
// the first address counts, as in kube-proxy. Absent conditions mean ready,
// serving and not terminating.
func (d *decoder) endpoint(b []byte) (ep state.Endpoint, ok bool, err error) {
	ep.Conditions = state.Ready | state.Serving
	w := fields(b)
	for w.next() {
		switch w.num {
		case 1:
			if !ok {
				a, err := addr(w.data)
				if err != nil { // an FQDN; its slice is left out as a whole
					continue
				}
				ep.Addr, ok = a, true
			}
		case 2:
			c := fields(w.data)
			for c.next() {
				if c.num < 1 || c.num > 3 {
					continue
				}
				bit := state.Conditions(1) << (c.num - 1)
				ep.Conditions &^= bit
				if c.varint != 0 {
					ep.Conditions |= bit
				}
			}
			if c.err != nil {
				return ep, false, c.err
			}
		case 6:
			ep.Node = d.intern(w.data)
		case 8:
			if ep.Hints, err = d.hint(w.data); err != nil {
				return ep, false, err
			}
		}
	}
	return ep, ok, w.err
}

// hint decodes EndpointHints; equal ones become one object.
func (d *decoder) hint(b []byte) (*state.Hints, error) {
	if len(b) == 0 {
		return nil, nil
	}
	if h, ok := d.hints[string(b)]; ok {
		return h, nil
	}
	h := &state.Hints{}
	w := fields(b)
	for w.next() {
		n := fields(w.data)
		for n.next() {
			switch {
			case n.num == 1 && w.num == 1:
				h.Zones = append(h.Zones, d.intern(n.data))
			case n.num == 1 && w.num == 2:
				h.Nodes = append(h.Nodes, d.intern(n.data))
			}
		}
		if n.err != nil {
			return nil, n.err
		}
	}
	if w.err != nil {
		return nil, w.err
	}
	if len(d.hints) >= maxInterned {
		clear(d.hints)
	}
	d.hints[string(b)] = h
	return h, nil
}

// slicePort decodes an EndpointPort. named is false for a port without a name
// field, which kube-proxy ignores.
func (d *decoder) slicePort(b []byte) (p state.SlicePort, named bool, err error) {
	p.Proto = state.TCP
	w := fields(b)
	for w.next() {
		switch w.num {
		case 1:
			p.Name, named = d.intern(w.data), true
		case 2:
			p.Proto = protocol(w.data)
		case 3:
			p.Port = port(w.varint)
		}
	}
	return p, named, w.err
}
