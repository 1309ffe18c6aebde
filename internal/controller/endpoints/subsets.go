package endpoints

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// maxAddresses is the most addresses a v1 Endpoints holds; what is beyond is
// left out and annotated (upstream's maxCapacity).
const maxAddresses = 1000

// address is an endpoint's identity within v1 Endpoints: two Pods on the host
// network share an IP and differ in their UID.
type address struct{ ip, uid string }

// port is a v1.EndpointPort that compares by value.
type port struct {
	name, protocol, appProtocol string
	hasAppProtocol              bool
	number                      int32
}

func portOf(p v1.EndpointPort) port {
	out := port{name: p.Name, protocol: string(p.Protocol), number: p.Port}
	if p.AppProtocol != nil {
		out.appProtocol, out.hasAppProtocol = *p.AppProtocol, true
	}
	return out
}

func (p port) endpointPort() v1.EndpointPort {
	out := v1.EndpointPort{Name: p.name, Port: p.number, Protocol: v1.Protocol(p.protocol)}
	if p.hasAppProtocol {
		out.AppProtocol = &p.appProtocol
	}
	return out
}

func comparePorts(a, b port) int {
	return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.name, b.name),
		cmp.Compare(a.appProtocol, b.appProtocol))
}

// pack puts subsets into canonical form, so that equal sets of endpoints
// compare equal and the fewest subsets tell them: every address appears once
// for each of its ports, addresses with the same ports and readiness share a
// subset, and all lists are sorted. An address that is both ready and not
// ready on a port is not ready on it.
func pack(subsets []v1.EndpointSubset) []v1.EndpointSubset {
	addresses := map[address]*v1.EndpointAddress{}
	ports := map[address]map[port]bool{} // readiness on each port
	add := func(a *v1.EndpointAddress, p port, ready bool) {
		key := address{ip: a.IP}
		if a.TargetRef != nil {
			key.uid = string(a.TargetRef.UID)
		}
		if addresses[key] == nil {
			addresses[key] = a
			ports[key] = map[port]bool{}
		}
		if was, ok := ports[key][p]; !ok || was {
			ports[key][p] = ready
		}
	}
	for i := range subsets {
		s := &subsets[i]
		list := make([]port, 0, len(s.Ports)+1)
		for _, p := range s.Ports {
			list = append(list, portOf(p))
		}
		if len(list) == 0 {
			list = append(list, port{}) // an address without a port, as headless Services may have
		}
		for _, p := range list {
			for j := range s.Addresses {
				add(&s.Addresses[j], p, true)
			}
			for j := range s.NotReadyAddresses {
				add(&s.NotReadyAddresses[j], p, false)
			}
		}
	}

	// A subset is the addresses that have the same ports, each with the same
	// readiness; one address may be ready on some of its ports only, and then
	// is in two subsets.
	type group struct {
		ports           []port
		ready, notReady []v1.EndpointAddress
	}
	groups := map[string]*group{}
	for key, byPort := range ports {
		for _, ready := range [...]bool{true, false} {
			var list []port
			for p, r := range byPort {
				if r == ready {
					list = append(list, p)
				}
			}
			if len(list) == 0 {
				continue
			}
			slices.SortFunc(list, comparePorts)
			id := portsID(list)
			g := groups[id]
			if g == nil {
				g = &group{ports: list}
				groups[id] = g
			}
			if ready {
				g.ready = append(g.ready, *addresses[key])
			} else {
				g.notReady = append(g.notReady, *addresses[key])
			}
		}
	}
	sorted := make([]*group, 0, len(groups))
	for _, g := range groups {
		sorted = append(sorted, g)
	}
	slices.SortFunc(sorted, func(a, b *group) int { return slices.CompareFunc(a.ports, b.ports, comparePorts) })
	packed := make([]v1.EndpointSubset, 0, len(sorted))
	for _, g := range sorted {
		s := v1.EndpointSubset{Addresses: sortAddresses(g.ready), NotReadyAddresses: sortAddresses(g.notReady)}
		for _, p := range g.ports {
			if p != (port{}) {
				s.Ports = append(s.Ports, p.endpointPort())
			}
		}
		packed = append(packed, s)
	}
	return packed
}

func portsID(ports []port) string {
	var b strings.Builder
	for _, p := range ports {
		b.WriteString(p.name + "\x00" + p.protocol + "\x00" + p.appProtocol + "\x00" + strconv.FormatBool(p.hasAppProtocol) +
			"\x00" + strconv.Itoa(int(p.number)) + "\x01")
	}
	return b.String()
}

func sortAddresses(list []v1.EndpointAddress) []v1.EndpointAddress {
	uid := func(a v1.EndpointAddress) string {
		if a.TargetRef == nil {
			return ""
		}
		return string(a.TargetRef.UID)
	}
	slices.SortFunc(list, func(a, b v1.EndpointAddress) int {
		return cmp.Or(cmp.Compare(a.IP, b.IP), cmp.Compare(uid(a), uid(b)))
	})
	return list
}

// truncate cuts subsets to maxAddresses and says whether it had to. Ready
// addresses stay before those that are not; each subset keeps its share.
func truncate(subsets []v1.EndpointSubset) bool {
	ready, notReady := count(subsets)
	if ready+notReady <= maxAddresses {
		return false
	}
	readyRoom := min(ready, maxAddresses)
	notReadyRoom := maxAddresses - readyRoom
	leftReady, leftNotReady := readyRoom, notReadyRoom
	for i := range subsets {
		s := &subsets[i]
		n := min(share(len(s.Addresses), ready, readyRoom), leftReady)
		s.Addresses, leftReady = s.Addresses[:n], leftReady-n
		n = min(share(len(s.NotReadyAddresses), notReady, notReadyRoom), leftNotReady)
		s.NotReadyAddresses, leftNotReady = s.NotReadyAddresses[:n], leftNotReady-n
	}
	return true
}

// share is how many of n, out of total, have room among room, rounded up.
func share(n, total, room int) int {
	if total == 0 {
		return 0
	}
	return (n*room + total - 1) / total
}

func count(subsets []v1.EndpointSubset) (ready, notReady int) {
	for i := range subsets {
		ready += len(subsets[i].Addresses)
		notReady += len(subsets[i].NotReadyAddresses)
	}
	return ready, notReady
}
