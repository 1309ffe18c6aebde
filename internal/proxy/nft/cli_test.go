package nft

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/proxy/state"
)

// Who looks at the machine's rules with nft(8) must be able to: some shapes of
// rules and sets make it abort, which would be the whole list's end, others'
// tables too.
func TestNftCanList(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("no nft(8) on this machine")
	}
	l := newLab(t)
	var fs []*state.Frontend
	for i, service := range []string{"10.96.0.10", "[fd00:96::10]"} {
		plain := clusterIP(state.TCP, service+":80", 1, 2, 3)
		lasting := clusterIP(state.TCP, service+":81", 1, 2, 3)
		lasting.Affinity = time.Hour
		limited := clusterIP(state.TCP, service+":82", 1)
		limited.Restricted, limited.Sources = true, everywhere
		local := &state.Frontend{Key: key(state.TCP, []string{"0.0.0.0:30080", "[::]:30080"}[i]), Inside: true, InsideBackends: podBackends(plain.Key, 1, 2)}
		fs = append(fs, plain, lasting, limited, local)
	}
	facts := labFacts
	facts.PodNetwork.Interfaces = []string{"cali*", "eth0"}
	l.ok(l.p.Configure(t.Context(), facts))
	l.replace(fs...)
	// With traffic, so that the sets that packets fill have elements.
	for _, f := range fs {
		if f.ClusterIP {
			l.answers(l.pods[0], state.TCP, netip.AddrPortFrom(f.Key.Addr, f.Key.Port).String(), "", "")
		}
	}
	for _, args := range [][]string{{"list", "ruleset"}, {"-j", "list", "ruleset"}, {"-s", "-n", "list", "table", "inet", "fairway"}} {
		l.ok(l.node.NS.Do(func() error {
			out, err := exec.Command(nft, args...).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "10.244.2.2") || strings.Contains(string(out), "netlink:") {
				t.Errorf("nft %v: %v\n%s", args, err, out)
			}
			return nil
		}))
	}
}

// The node loses the address that stands for loopback: another does.
func TestLocalhostFollowsAddresses(t *testing.T) {
	each(t, func(t *testing.T, l *lab, a addresses) {
		l.replace(nodePort(state.TCP, a, 3)) // by the address that goes last
		i := 0
		if a.name == "ipv6" {
			i = 1
		}
		for range 2 {
			l.answers(l.node, state.TCP, a.localhost+":30080", "pod3", "")
			l.p.mu.Lock()
			was := l.p.localhost[i]
			l.p.mu.Unlock()
			l.removeAddr(was)
			deadline := time.Now().Add(patience)
			for is := was; is == was; {
				if time.Now().After(deadline) {
					t.Fatalf("%s still stands for localhost, long after it went", was)
				}
				time.Sleep(20 * time.Millisecond)
				l.p.mu.Lock()
				is = l.p.localhost[i]
				l.p.mu.Unlock()
			}
		}
		l.p.mu.Lock()
		left := l.p.localhost[i]
		l.p.mu.Unlock()
		if !left.IsValid() {
			t.Error("none stands for localhost, though the node has addresses")
		}
	})
}

// A node without an address of the family refuses on localhost at once.
func TestLocalhostWithoutAddresses(t *testing.T) {
	for _, a := range []addresses{ipv4, ipv6} {
		t.Run(a.name, func(t *testing.T) {
			l, p := bareNode(t)
			l.ok(p.Configure(t.Context(), labFacts))
			l.ok(p.Replace(t.Context(), slices.Values([]*state.Frontend{nodePort(state.TCP, a, 2)})))
			l.refused(l.node, state.TCP, a.localhost+":30080")
		})
	}
}
