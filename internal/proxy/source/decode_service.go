package source

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"fairway.dev/fairway/internal/proxy/state"
)

// service decodes a Service. It returns nil if it is none of ours: headless, of
// type ExternalName, without an address yet, or labelled so.
func (d *decoder) service(b []byte) (m objectMeta, s *state.Service, err error) {
	var spec serviceSpec
	var lbIPs []netip.Addr
	w := fields(b)
	for w.next() {
		switch w.num {
		case 1:
			m, err = d.meta(w.data)
		case 2:
			spec, err = d.serviceSpec(w.data)
		case 3:
			lbIPs, err = loadBalancerIPs(w.data)
		}
		if err != nil {
			return m, nil, err
		}
	}
	if w.err != nil {
		return m, nil, w.err
	}
	if m.foreign || spec.kind == "ExternalName" || len(spec.clusterIPs) == 0 {
		return m, nil, nil
	}
	s = &state.Service{
		Name:            state.Name{Namespace: m.namespace, Name: m.name},
		Ports:           spec.ports,
		ClusterIPs:      spec.clusterIPs,
		ExternalIPs:     spec.externalIPs,
		LoadBalancerIPs: lbIPs,
		SourceRanges:    spec.sourceRanges,
		InternalLocal:   spec.internalLocal,
	}
	if spec.clientIP {
		s.Affinity = time.Duration(spec.affinitySeconds) * time.Second
	}
	accessible := spec.kind == "LoadBalancer" || spec.kind == "NodePort" || len(spec.externalIPs) > 0
	s.ExternalLocal = spec.externalLocal && accessible
	if s.ExternalLocal && spec.kind == "LoadBalancer" {
		s.HealthCheckNodePort = spec.healthCheckNodePort
	}
	return m, s, nil
}

type serviceSpec struct {
	kind                         string
	ports                        []state.ServicePort
	clusterIPs, externalIPs      []netip.Addr
	sourceRanges                 []netip.Prefix
	clientIP                     bool
	affinitySeconds              uint64
	externalLocal, internalLocal bool
	healthCheckNodePort          uint16
}

// defaultAffinitySeconds is the API's default for sessionAffinityConfig.
const defaultAffinitySeconds = 3 * 60 * 60

func (d *decoder) serviceSpec(b []byte) (s serviceSpec, err error) {
	s.affinitySeconds = defaultAffinitySeconds
	var clusterIP []byte
	w := fields(b)
	for w.next() {
		switch w.num {
		case 1:
			p, err := d.servicePort(w.data)
			if err != nil {
				return s, fmt.Errorf("spec.ports[%d]: %w", len(s.ports), err)
			}
			s.ports = append(s.ports, p)
		case 3:
			clusterIP = w.data
		case 18:
			if err := appendAddr(&s.clusterIPs, w.data); err != nil {
				return s, fmt.Errorf("spec.clusterIPs: %w", err)
			}
		case 4:
			s.kind = d.intern(w.data)
		case 5:
			if err := appendAddr(&s.externalIPs, w.data); err != nil {
				return s, fmt.Errorf("spec.externalIPs: %w", err)
			}
		case 7:
			s.clientIP = string(w.data) == "ClientIP"
		case 9:
			p, err := prefix(w.data)
			if err != nil {
				return s, fmt.Errorf("spec.loadBalancerSourceRanges: %w", err)
			}
			s.sourceRanges = append(s.sourceRanges, p)
		case 11:
			s.externalLocal = string(w.data) == "Local"
		case 12:
			s.healthCheckNodePort = port(w.varint)
		case 14:
			c := fields(w.data)
			for c.next() {
				if c.num != 1 {
					continue
				}
				t := fields(c.data)
				for t.next() {
					if t.num == 1 {
						s.affinitySeconds = t.varint
					}
				}
			}
		case 22:
			s.internalLocal = string(w.data) == "Local"
		}
	}
	if len(s.clusterIPs) == 0 && len(clusterIP) > 0 { // an API server before 1.20
		if err := appendAddr(&s.clusterIPs, clusterIP); err != nil {
			return s, fmt.Errorf("spec.clusterIP: %w", err)
		}
	}
	return s, w.err
}

// appendAddr appends an address unless it is "None", empty, or there already.
func appendAddr(list *[]netip.Addr, b []byte) error {
	if len(b) == 0 || string(b) == "None" {
		return nil
	}
	a, err := addr(b)
	if err != nil {
		return err
	}
	if !slices.Contains(*list, a) {
		*list = append(*list, a)
	}
	return nil
}

func (d *decoder) servicePort(b []byte) (p state.ServicePort, err error) {
	p.Proto = state.TCP
	w := fields(b)
	for w.next() {
		switch w.num {
		case 1:
			p.Name = d.intern(w.data)
		case 2:
			p.Proto = protocol(w.data)
		case 3:
			p.Port = port(w.varint)
		case 5:
			p.NodePort = port(w.varint)
		}
	}
	return p, w.err
}

// loadBalancerIPs decodes a ServiceStatus: the ingress addresses that nodes
// answer for, which are those whose ipMode is not Proxy.
func loadBalancerIPs(b []byte) (out []netip.Addr, err error) {
	status := fields(b)
	for status.next() {
		if status.num != 1 {
			continue
		}
		lb := fields(status.data)
		for lb.next() {
			if lb.num != 1 {
				continue
			}
			var ip []byte
			vip := true
			in := fields(lb.data)
			for in.next() {
				switch in.num {
				case 1:
					ip = in.data
				case 3:
					vip = string(in.data) == "VIP"
				}
			}
			if in.err != nil {
				return nil, in.err
			}
			if vip {
				if err := appendAddr(&out, ip); err != nil {
					return nil, fmt.Errorf("status.loadBalancer.ingress: %w", err)
				}
			}
		}
		if lb.err != nil {
			return nil, lb.err
		}
	}
	return out, status.err
}

// Node is what a proxy needs of a Node.
type Node struct {
	Name string
	Zone string // empty if it has no zone label
	// IPs are its own addresses: the first it has, and the first of the other
	// family; internal ones before external ones.
	IPs      []netip.Addr
	PodCIDRs []netip.Prefix
	// Leaving is set while the Node is being deleted, or the cluster
	// autoscaler has said that it will be.
	Leaving bool
}

// Equal reports whether both say the same.
func (n *Node) Equal(o *Node) bool {
	return n.Name == o.Name && n.Zone == o.Zone && n.Leaving == o.Leaving &&
		slices.Equal(n.IPs, o.IPs) && slices.Equal(n.PodCIDRs, o.PodCIDRs)
}

func (d *decoder) node(b []byte) (m objectMeta, n *Node, err error) {
	n = &Node{}
	var internal, external []netip.Addr
	w := fields(b)
	for w.next() {
		switch w.num {
		case 1:
			if m, err = d.meta(w.data); err != nil {
				return m, nil, err
			}
		case 2:
			if err := n.spec(w.data); err != nil {
				return m, nil, err
			}
		case 3:
			st := fields(w.data)
			for st.next() {
				if st.num != 5 {
					continue
				}
				var kind, address []byte
				a := fields(st.data)
				for a.next() {
					switch a.num {
					case 1:
						kind = a.data
					case 2:
						address = a.data
					}
				}
				ip, err := addr(address)
				switch {
				case err != nil: // a host name
				case string(kind) == "InternalIP":
					internal = append(internal, ip)
				case string(kind) == "ExternalIP":
					external = append(external, ip)
				}
			}
			if st.err != nil {
				return m, nil, st.err
			}
		}
	}
	n.Name, n.Zone = m.name, m.zone
	n.Leaving = n.Leaving || m.beingDeleted
	for _, ip := range append(internal, external...) {
		if len(n.IPs) == 0 || len(n.IPs) == 1 && n.IPs[0].Is6() != ip.Is6() {
			n.IPs = append(n.IPs, ip)
		}
	}
	return m, n, w.err
}

// spec decodes a NodeSpec.
func (n *Node) spec(b []byte) error {
	w := fields(b)
	for w.next() {
		switch w.num {
		case 7:
			p, err := prefix(w.data)
			if err != nil {
				return fmt.Errorf("spec.podCIDRs: %w", err)
			}
			n.PodCIDRs = append(n.PodCIDRs, p)
		case 5:
			t := fields(w.data)
			for t.next() {
				if t.num == 1 && string(t.data) == taintToBeDeleted {
					n.Leaving = true
				}
			}
			if t.err != nil {
				return t.err
			}
		}
	}
	return w.err
}

// serviceCIDR decodes a ServiceCIDR to its ranges.
func (d *decoder) serviceCIDR(b []byte) (m objectMeta, out []netip.Prefix, err error) {
	w := fields(b)
	for w.next() {
		switch w.num {
		case 1:
			if m, err = d.meta(w.data); err != nil {
				return m, nil, err
			}
		case 2:
			spec := fields(w.data)
			for spec.next() {
				if spec.num == 1 {
					p, err := prefix(spec.data)
					if err != nil {
						return m, nil, fmt.Errorf("spec.cidrs: %w", err)
					}
					out = append(out, p)
				}
			}
			if spec.err != nil {
				return m, nil, spec.err
			}
		}
	}
	return m, out, w.err
}
