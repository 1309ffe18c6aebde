package nft

import (
	"testing"

	"fairway.dev/fairway/internal/proxy/state"
)

// each runs f for both families with a ClusterIP address and what the hosts of
// the lab are called in the family.
func each(t *testing.T, f func(t *testing.T, l *lab, a addresses)) {
	for _, a := range []addresses{ipv4, ipv6} {
		t.Run(a.name, func(t *testing.T) { f(t, newLab(t), a) })
	}
}

type addresses struct {
	name, service, unused, node, any, localhost string
	client                                      string
	pod, gateway                                []string
}

var (
	ipv4 = addresses{"ipv4", "10.96.0.10", "10.96.0.99", "192.0.2.254", "0.0.0.0", "127.0.0.1", "192.0.2.1",
		[]string{"", "10.244.1.2", "10.244.2.2", "10.244.3.2"}, []string{"", "10.244.1.1", "10.244.2.1", "10.244.3.1"}}
	ipv6 = addresses{"ipv6", "[fd00:96::10]", "[fd00:96::99]", "[2001:db8::fe]", "[::]", "[::1]", "2001:db8::1",
		[]string{"", "fd00:244:1::2", "fd00:244:2::2", "fd00:244:3::2"}, []string{"", "fd00:244:1::1", "fd00:244:2::1", "fd00:244:3::1"}}
)

func clusterIP(proto state.Protocol, address string, pods ...int) *state.Frontend {
	k := key(proto, address)
	return &state.Frontend{Key: k, ClusterIP: true, Backends: podBackends(k, pods...), Masquerade: state.MasqueradeOffCluster}
}

func TestClusterIP(t *testing.T) {
	each(t, func(t *testing.T, l *lab, a addresses) {
		l.replace(
			clusterIP(state.TCP, a.service+":80", 2),
			clusterIP(state.UDP, a.service+":80", 3),
			clusterIP(state.TCP, a.service+":81"),
			clusterIP(state.UDP, a.service+":81"),
		)
		l.answers(l.pods[0], state.TCP, a.service+":80", "pod2", a.pod[1])
		l.answers(l.pods[0], state.UDP, a.service+":80", "pod3", a.pod[1])
		// Clients outside the Pod network, the node among them, are masqueraded.
		l.answers(l.client, state.TCP, a.service+":80", "pod2", a.gateway[2])
		l.answers(l.client, state.UDP, a.service+":80", "pod3", a.gateway[3])
		l.answers(l.node, state.TCP, a.service+":80", "pod2", a.gateway[2])
		// Hairpin: a Pod that reaches itself.
		l.answers(l.pods[1], state.TCP, a.service+":80", "pod2", a.gateway[2])
		l.answers(l.pods[2], state.UDP, a.service+":80", "pod3", a.gateway[3])
		// No backends; no such port; no such protocol.
		for _, proto := range []state.Protocol{state.TCP, state.UDP} {
			l.refused(l.pods[0], proto, a.service+":81")
			l.refused(l.client, proto, a.service+":81")
			l.refused(l.node, proto, a.service+":81")
			l.refused(l.pods[0], proto, a.service+":82")
			l.refused(l.client, proto, a.service+":82")
			l.refused(l.node, proto, a.service+":82")
			l.silent(l.pods[0], proto, a.unused+":80")
		}
		// A change, and the way back.
		l.apply([]*state.Frontend{clusterIP(state.TCP, a.service+":80", 1, 3)}, key(state.UDP, a.service+":80"))
		for range 10 {
			if s, _, err := l.ask(l.pods[1], state.TCP, a.service+":80"); err != nil || s == "pod2" {
				t.Errorf("after the change: got %s, %v; want pod1 or pod3", s, err)
			}
		}
		l.refused(l.pods[0], state.UDP, a.service+":80")
	})
}
