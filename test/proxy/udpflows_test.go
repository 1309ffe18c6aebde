package proxy_test

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// udpFlow is a UDP socket that has been answered once.
type udpFlow struct {
	probe
	endpoint string
	conn     net.Conn
}

// flowKey says from where, to which address and which endpoint a flow goes.
type flowKey struct {
	probe
	endpoint string
}

// flowsEach is how many flows there are to each frontend from each place: more
// than one endpoint is to be met.
const flowsEach = 6

// open begins UDP flows to every frontend that answers, and leaves them open.
func (s *side) open(w world) (out []udpFlow) {
	for _, p := range w.probes() {
		if p.to.network != "udp" || p.from == "node" {
			continue
		}
		for range flowsEach {
			c, err := s.from[p.from].Dial("udp", p.to.address, time.Second)
			if err != nil {
				break
			}
			endpoint := say(c, 200*time.Millisecond)
			if endpoint == "refused" || endpoint == "dropped" {
				c.Close()
				break
			}
			out = append(out, udpFlow{p, endpoint, c})
		}
	}
	return out
}

// say sends something and returns who answers.
func say(c net.Conn, patience time.Duration) string {
	c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 128)
	_, err := c.Write([]byte("?"))
	var n int
	if err == nil {
		n, err = c.Read(buf)
	}
	if err != nil {
		if e, ok := err.(net.Error); ok && e.Timeout() {
			return "dropped"
		}
		return "refused"
	}
	endpoint, _, _ := strings.Cut(string(buf[:n]), " ")
	return endpoint
}

// again speaks on all flows once more, and says what has become of those to
// each endpoint: they stay there, move to another one, or get no answer.
func (s *side) again(flows []udpFlow) map[flowKey]map[string]bool {
	out := map[flowKey]map[string]bool{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, 32)
	for _, f := range flows {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			defer f.conn.Close()
			now := say(f.conn, 300*time.Millisecond)
			if now == "refused" || now == "dropped" {
				now = say(f.conn, 300*time.Millisecond) // the first may have been on its way when the flow was cut
			}
			switch now {
			case f.endpoint:
				now = "stays"
			case "refused", "dropped": // the first send after a refusal is told of it, the next is not
				now = "gets no answer"
			default:
				now = "moves"
			}
			mu.Lock()
			defer mu.Unlock()
			k := flowKey{f.probe, f.endpoint}
			if out[k] == nil {
				out[k] = map[string]bool{}
			}
			out[k][now] = true
		})
	}
	wg.Wait()
	return out
}

// serves reports whether a Service of the world has a UDP frontend of that address.
func (w world) serves(address string) bool {
	for _, p := range w.probes() {
		host, _, _ := net.SplitHostPort(address)
		family := corev1.IPv4Protocol
		if strings.Contains(host, ":") {
			family = corev1.IPv6Protocol
		}
		if p.to == (target{"udp", address}) && slices.Contains(w.service(p.service).Spec.IPFamilies, family) {
			return true
		}
	}
	return false
}

// unserved reports whether a probe asks a node port of a Service without an
// endpoint that serves, in the port's family.
func (w world) unserved(p probe) bool {
	host, port, _ := net.SplitHostPort(p.to.address)
	if !slices.ContainsFunc(w.service(p.service).Spec.Ports, func(sp corev1.ServicePort) bool { return fmt.Sprint(sp.NodePort) == port }) {
		return false
	}
	for _, s := range w.services {
		for _, sl := range s.slices {
			if s.object.Name != p.service || (sl.AddressType == discoveryv1.AddressTypeIPv6) != strings.Contains(host, ":") {
				continue
			}
			if slices.ContainsFunc(sl.Endpoints, func(e discoveryv1.Endpoint) bool { return *e.Conditions.Serving }) {
				return false
			}
		}
	}
	return true
}

// compareFlows compares what has become of flows to the same endpoint by the
// same frontend, and counts them.
func compareFlows(t *testing.T, w world, theirs, ours map[flowKey]map[string]bool, counts map[string]int) {
	t.Helper()
	for k, a := range theirs {
		b := ours[k]
		if b == nil {
			continue // chance has led none of ours there
		}
		x, y := strings.Join(slices.Sorted(maps.Keys(a)), ", "), strings.Join(slices.Sorted(maps.Keys(b)), ", ")
		if !w.serves(k.to.address) {
			// kube-proxy lets flows to what is no longer there go on for as long
			// as they are used; ours end.
			if y == "stays" {
				t.Errorf("world %d: UDP flow from %s to %s %s goes on, and there is no such frontend any more", w.round, k.from, k.service, k.to)
			}
			counts["ends with its frontend"]++
			continue
		}
		if x == "stays" && y != x && w.unserved(k.probe) {
			// kube-proxy does not cut flows to a node port that nobody serves any more.
			counts["ends with the last endpoint of a node port"]++
			continue
		}
		counts[y]++
		if x != y {
			t.Errorf("world %d: UDP flow from %s to %s %s, endpoint %s, after the change:\n  kube-proxy: %s\n  fairway:    %s\nnow:\n%s",
				w.round, k.from, k.service, k.to, k.endpoint, x, y, fmt.Sprint(w.yaml(k.service)))
		}
	}
}
