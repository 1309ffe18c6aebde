package zone

import (
	"bytes"
	"sync"
)

// namespaces counts what makes a namespace's name exist: itself, and each of its Services.
type namespaces struct {
	mu sync.RWMutex
	m  map[string]int
}

func (n *namespaces) add(name string) {
	n.mu.Lock()
	n.m[name]++
	n.mu.Unlock()
}

func (n *namespaces) drop(name string) {
	n.mu.Lock()
	if n.m[name]--; n.m[name] <= 0 {
		delete(n.m, name)
	}
	n.mu.Unlock()
}

func (n *namespaces) has(name []byte) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.m[string(name)] > 0
}

// reverse finds who has an address. IPv4 addresses are keyed in their
// IPv4-in-IPv6 form.
type reverse struct {
	mu       sync.RWMutex
	services map[[16]byte]*service
	slices   map[[16]byte]*slice
	// more has the other slices of an address that is in several: a Pod behind several Services.
	more map[[16]byte][]*slice
}

func (r *reverse) init() {
	r.services, r.slices, r.more = map[[16]byte]*service{}, map[[16]byte]*slice{}, map[[16]byte][]*slice{}
}

// key16 is an address of 4 or 16 bytes in 16 bytes.
func key16(a []byte) (k [16]byte) {
	if len(a) == 4 {
		k[10], k[11] = 0xff, 0xff
		copy(k[12:], a)
		return k
	}
	copy(k[:], a)
	return k
}

func (r *reverse) addService(s *service) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.has&has4 != 0 {
		r.services[key16(s.v4[:])] = s
	}
	if s.has&has6 != 0 {
		r.services[s.v6] = s
	}
}

func (r *reverse) dropService(s *service) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// An address given on to another Service by now stays with that one.
	drop := func(k [16]byte) {
		if now := r.services[k]; now != nil && now.ns == s.ns && now.name == s.name {
			delete(r.services, k)
		}
	}
	if s.has&has4 != 0 {
		drop(key16(s.v4[:]))
	}
	if s.has&has6 != 0 {
		drop(s.v6)
	}
}

func (r *reverse) addSlice(s *slice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range s.len() {
		k := key16(s.addr(i))
		switch first := r.slices[k]; {
		case first == nil:
			r.slices[k] = s
		case first == s: // the address is in this slice twice
		default:
			r.more[k] = append(without(r.more[k], s), s)
		}
	}
}

func (r *reverse) dropSlice(s *slice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range s.len() {
		k := key16(s.addr(i))
		more := r.more[k]
		if r.slices[k] == s {
			delete(r.slices, k)
			if len(more) > 0 {
				r.slices[k] = more[0]
				more = more[1:]
			}
		} else {
			more = without(more, s)
		}
		if len(more) > 0 {
			r.more[k] = more
		} else {
			delete(r.more, k)
		}
	}
}

// find returns the Service whose ClusterIP the address is, or else the slices it is in.
func (r *reverse) find(k [16]byte) (*service, []*slice) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if s := r.services[k]; s != nil {
		return s, nil
	}
	first := r.slices[k]
	if first == nil {
		return nil, nil
	}
	return nil, append([]*slice{first}, r.more[k]...)
}

// podKey is a namespace and an address in it.
type podKey struct {
	ns   string
	addr [16]byte
}

// podIndex counts the Pods that have an address in a namespace: several on a host network.
type podIndex struct {
	mu sync.RWMutex
	m  map[podKey]int
}

func (x *podIndex) change(p *pod, by int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, a := range p.addrs {
		k := podKey{p.ns, a}
		if x.m[k] += by; x.m[k] <= 0 {
			delete(x.m, k)
		}
	}
}

func (x *podIndex) has(ns []byte, addr [16]byte) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.m[podKey{string(ns), addr}] > 0
}

// index is where in a slice an address is, from the from'th endpoint on, or -1.
// It may be there more than once.
func (s *slice) index(addr []byte, from int) int {
	if len(addr) != int(s.size) {
		return -1
	}
	for i := from; i < s.len(); i++ {
		if bytes.Equal(s.addr(i), addr) {
			return i
		}
	}
	return -1
}
