package nft

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"fairway.dev/fairway/internal/proxy/state"
	"fairway.dev/fairway/internal/testenv"
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

func nodePort(proto state.Protocol, a addresses, pods ...int) *state.Frontend {
	k := key(proto, a.any+":30080")
	return &state.Frontend{Key: k, Backends: podBackends(k, pods...), Masquerade: state.MasqueradeAlways}
}

func TestNodePort(t *testing.T) {
	each(t, func(t *testing.T, l *lab, a addresses) {
		empty := nodePort(state.TCP, a)
		empty.Key.Port = 30081
		l.replace(nodePort(state.TCP, a, 2), nodePort(state.UDP, a, 3), empty)
		for _, proto := range []state.Protocol{state.TCP, state.UDP} {
			server, i := "pod2", 2
			if proto == state.UDP {
				server, i = "pod3", 3
			}
			l.answers(l.client, proto, a.node+":30080", server, a.gateway[i])
			l.answers(l.pods[0], proto, a.node+":30080", server, a.gateway[i])
			l.answers(l.pods[i-1], proto, a.node+":30080", server, a.gateway[i])
			l.answers(l.node, proto, a.node+":30080", server, a.gateway[i])
			l.answers(l.node, proto, a.localhost+":30080", server, a.gateway[i])
			// Not the node's address: the pod itself is asked.
			l.refused(l.pods[0], proto, netip.AddrPortFrom(netip.MustParseAddr(a.pod[2]), 30080).String())
		}
		for _, h := range []*testenv.Host{l.client, l.node, l.pods[0]} {
			l.refused(h, state.TCP, a.node+":30081")
		}
		l.refused(l.node, state.TCP, a.localhost+":30081")
		// What the node listens on itself is untouched, loopback included.
		l.answers(l.node, state.TCP, a.localhost+":9090", "node", netip.MustParseAddr(trim(a.localhost)).String())
		l.answers(l.client, state.TCP, a.node+":9090", "node", a.client)
	})
}

func trim(s string) string { return strings.Trim(s, "[]") }

// A node port's backend may be the node itself: a Pod with the host's network.
func TestNodePortToHostNetwork(t *testing.T) {
	each(t, func(t *testing.T, l *lab, a addresses) {
		np := nodePort(state.TCP, a)
		np.Backends = backendsOf(a.node + ":9090")
		np.Masquerade = state.MasqueradeNever
		l.replace(np)
		l.answers(l.client, state.TCP, a.node+":30080", "node", a.client)
		l.answers(l.node, state.TCP, a.node+":30080", "node", "")
		l.answers(l.node, state.TCP, a.localhost+":30080", "node", "")
	})
}

func TestNodePortAddresses(t *testing.T) {
	each(t, func(t *testing.T, l *lab, a addresses) {
		facts := labFacts
		facts.NodePortAddrs = prefixes("192.0.2.254/32", "2001:db8::fe/128")
		l.ok(l.p.Configure(context.Background(), facts))
		l.replace(nodePort(state.TCP, a, 2))
		l.answers(l.client, state.TCP, a.node+":30080", "pod2", "")
		l.refused(l.pods[0], state.TCP, netip.AddrPortFrom(netip.MustParseAddr(a.gateway[1]), 30080).String())
		l.refused(l.node, state.TCP, a.localhost+":30080")
		// Later, in one transaction, other addresses; and none.
		facts.NodePortAddrs = prefixes("10.244.0.0/16", "fd00:244::/32")
		l.ok(l.p.Configure(context.Background(), facts))
		l.refused(l.client, state.TCP, a.node+":30080")
		l.answers(l.pods[0], state.TCP, netip.AddrPortFrom(netip.MustParseAddr(a.gateway[1]), 30080).String(), "pod2", "")
		facts.NodePortAddrs = nil
		l.ok(l.p.Configure(context.Background(), facts))
		l.refused(l.pods[0], state.TCP, netip.AddrPortFrom(netip.MustParseAddr(a.gateway[1]), 30080).String())
	})
}

// externalTrafficPolicy Local: outsiders keep their address and see only local
// endpoints; Pods and the node itself see all.
func TestLocalPolicy(t *testing.T) {
	each(t, func(t *testing.T, l *lab, a addresses) {
		lb := map[string]string{"ipv4": "203.0.113.7", "ipv6": "[2001:db8:1::7]"}[a.name]
		local := func(address string, outside []int, inside ...int) *state.Frontend {
			k := key(state.TCP, address)
			return &state.Frontend{Key: k, Backends: podBackends(k, outside...), Empty: state.Drop,
				Inside: true, InsideBackends: podBackends(k, inside...)}
		}
		l.replace(
			local(a.any+":30080", []int{1}, 2),
			local(lb+":80", []int{1}, 2),
			local(lb+":81", nil, 2),
			local(a.any+":30081", nil, 2),
		)
		for _, address := range []string{a.node + ":30080", lb + ":80"} {
			l.answers(l.client, state.TCP, address, "pod1", a.client)
			l.answers(l.pods[2], state.TCP, address, "pod2", a.pod[3])
			l.answers(l.pods[1], state.TCP, address, "pod2", a.gateway[2]) // hairpin
			l.answers(l.node, state.TCP, address, "pod2", a.gateway[2])
		}
		l.answers(l.node, state.TCP, a.localhost+":30080", "pod2", a.gateway[2])
		for _, address := range []string{a.node + ":30081", lb + ":81"} {
			l.silent(l.client, state.TCP, address)
			l.answers(l.pods[2], state.TCP, address, "pod2", a.pod[3])
			l.answers(l.node, state.TCP, address, "pod2", a.gateway[2])
		}
	})
}

// internalTrafficPolicy Local without a local endpoint is silent too.
func TestDrop(t *testing.T) {
	each(t, func(t *testing.T, l *lab, a addresses) {
		f := clusterIP(state.TCP, a.service+":80")
		f.Empty = state.Drop
		l.replace(f)
		l.silent(l.pods[0], state.TCP, a.service+":80")
		l.silent(l.client, state.TCP, a.service+":80")
		l.silent(l.node, state.TCP, a.service+":80")
	})
}

func TestMasquerade(t *testing.T) {
	each(t, func(t *testing.T, l *lab, a addresses) {
		for _, c := range []struct {
			name           string
			mode           state.Masquerade
			pods           state.PodNetwork
			pod1, outsider string
		}{
			{"never", state.MasqueradeNever, labFacts.PodNetwork, a.pod[1], a.client},
			{"off cluster", state.MasqueradeOffCluster, labFacts.PodNetwork, a.pod[1], a.gateway[2]},
			{"always", state.MasqueradeAlways, labFacts.PodNetwork, a.gateway[2], a.gateway[2]},
			{"off cluster, Pod network unknown", state.MasqueradeOffCluster, state.PodNetwork{}, a.pod[1], a.client},
			{"off cluster, by interface name", state.MasqueradeOffCluster, state.PodNetwork{Interfaces: []string{"pod*"}}, a.pod[1], a.gateway[2]},
			{"off cluster, by another interface", state.MasqueradeOffCluster, state.PodNetwork{Interfaces: []string{"pod", "pod2"}}, a.gateway[2], a.gateway[2]},
		} {
			t.Run(c.name, func(t *testing.T) {
				l := l.with(t)
				facts := labFacts
				facts.PodNetwork = c.pods
				l.ok(l.p.Configure(context.Background(), facts))
				f := clusterIP(state.TCP, a.service+":80", 2)
				f.Masquerade = c.mode
				l.replace(f)
				l.answers(l.pods[0], state.TCP, a.service+":80", "pod2", c.pod1)
				l.answers(l.client, state.TCP, a.service+":80", "pod2", c.outsider)
				l.answers(l.pods[1], state.TCP, a.service+":80", "pod2", a.gateway[2]) // hairpin in any mode
			})
		}
	})
}

func TestAffinity(t *testing.T) {
	each(t, func(t *testing.T, l *lab, a addresses) {
		f := func(seconds int, pods ...int) *state.Frontend {
			f := clusterIP(state.TCP, a.service+":80", pods...)
			f.Affinity = time.Duration(seconds) * time.Second
			return f
		}
		l.replace(f(100, 1, 2, 3))
		where := func() string {
			t.Helper()
			s, _, err := l.ask(l.client, state.TCP, a.service+":80")
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		first := where()
		stays := func(what string) {
			t.Helper()
			for range 20 {
				if s := where(); s != first {
					t.Fatalf("%s: went to %s, want %s as before", what, s, first)
				}
			}
		}
		stays("nothing changed")
		// Another endpoint goes, which may move ours to another slot; and comes back.
		at := int(first[3] - '0')
		others := slices.DeleteFunc([]int{1, 2, 3}, func(i int) bool { return i == at })
		l.apply([]*state.Frontend{f(100, at, others[0])})
		stays("another endpoint went")
		l.apply([]*state.Frontend{f(100, others[0], others[1], at)})
		stays("slots changed")
		l.replace(f(100, others[0], others[1], at))
		stays("table adopted")
		// Ours goes: the client is sent to another, and stays there when ours is back.
		l.apply([]*state.Frontend{f(100, others[0], others[1])})
		if first = where(); first == fmt.Sprintf("pod%d", at) {
			t.Errorf("went to %s, whose endpoint is gone", first)
		}
		stays("own endpoint went")
		l.apply([]*state.Frontend{f(100, 1, 2, 3)})
		stays("first endpoint is back")
		// It ends with its time.
		l.apply([]*state.Frontend{f(1, 1, 2, 3)})
		where()
		deadline := time.Now().Add(4 * patience) // one time in three it is the same by chance
		for s := first; s == first; s = where() {
			if time.Now().After(deadline) {
				t.Fatal("still on the same endpoint, long after the affinity's time")
			}
			time.Sleep(1100 * time.Millisecond)
		}
	})
}

func TestSourceRanges(t *testing.T) {
	each(t, func(t *testing.T, l *lab, a addresses) {
		lb := map[string]string{"ipv4": "203.0.113.7", "ipv6": "[2001:db8:1::7]"}[a.name]
		f := func(ranges ...string) *state.Frontend {
			k := key(state.TCP, lb+":80")
			return &state.Frontend{Key: k, Backends: podBackends(k, 2), Masquerade: state.MasqueradeAlways, Restricted: true, Sources: prefixes(ranges...)}
		}
		other := &state.Frontend{Key: key(state.TCP, lb+":81"), Restricted: true, Sources: everywhere}
		open := map[string]string{"ipv4": "0.0.0.0/0", "ipv6": "::/0"}[a.name]
		client := netip.MustParseAddr(a.client)
		one := netip.PrefixFrom(client, client.BitLen()).String()
		net, _ := client.Prefix(client.BitLen() - 8)
		pods := podCIDRs[familyOf(client)].String()

		l.replace(f(one), other)
		l.answers(l.client, state.TCP, lb+":80", "pod2", "")
		l.silent(l.pods[0], state.TCP, lb+":80")
		// The node's own, by its address on the way to it, which is the client's network.
		l.silent(l.node, state.TCP, lb+":80")
		l.apply([]*state.Frontend{f(net.String(), one)})
		l.answers(l.node, state.TCP, lb+":80", "pod2", "")
		l.answers(l.client, state.TCP, lb+":80", "pod2", "")
		l.apply([]*state.Frontend{f(pods)})
		l.answers(l.pods[0], state.TCP, lb+":80", "pod2", "")
		l.silent(l.client, state.TCP, lb+":80")
		l.apply([]*state.Frontend{f(open)})
		l.answers(l.client, state.TCP, lb+":80", "pod2", "")
		l.apply([]*state.Frontend{f()})
		l.silent(l.client, state.TCP, lb+":80")
		// Who is let in to no backends is refused.
		l.refused(l.client, state.TCP, lb+":81")
	})
}

// Connections are spread evenly: chi-squared over 10,000 of them.
func TestBalance(t *testing.T) {
	each(t, func(t *testing.T, l *lab, a addresses) {
		f := clusterIP(state.UDP, a.service+":80", 1, 2, 3)
		f.Masquerade = state.MasqueradeNever
		l.replace(f)
		const total, workers = 10_000, 4
		counts := make(chan map[string]int)
		for range workers {
			go func() {
				seen := map[string]int{}
				for range total / workers {
					s, _, err := l.ask(l.client, state.UDP, a.service+":80")
					if err != nil {
						t.Error(err)
						break
					}
					seen[s]++
				}
				counts <- seen
			}()
		}
		sum := map[string]int{}
		n := 0
		for range workers {
			for s, c := range <-counts {
				sum[s] += c
				n += c
			}
		}
		chi := 0.0
		for i := 1; i <= labPods; i++ {
			d := float64(sum[fmt.Sprintf("pod%d", i)]) - float64(n)/labPods
			chi += d * d / (float64(n) / labPods)
		}
		// 2 degrees of freedom: above this by chance once in a million runs.
		if chi > 27.6 {
			t.Errorf("chi-squared %.1f over %v", chi, sum)
		}
		t.Logf("chi-squared %.2f over %v", chi, sum)
	})
}

// A client is refused at once even where the node knows no way to the address.
func TestRefuseWithoutRoute(t *testing.T) {
	each(t, func(t *testing.T, l *lab, a addresses) {
		routes, err := l.node.NL.RouteList(nil, netlink.FAMILY_ALL)
		l.ok(err)
		for _, r := range routes {
			if r.Gw != nil {
				l.ok(l.node.NL.RouteDel(&r))
			}
		}
		l.replace(clusterIP(state.TCP, a.service+":80", 2), clusterIP(state.TCP, a.service+":81"))
		l.answers(l.pods[0], state.TCP, a.service+":80", "pod2", "")
		l.refused(l.pods[0], state.TCP, a.service+":81")
		l.refused(l.pods[0], state.UDP, a.service+":82")
	})
}
