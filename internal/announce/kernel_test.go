package announce

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"fairway.dev/fairway/internal/testenv"
)

// lan is a client and some nodes on one Ethernet segment, each node with its
// announcer. Every node answers HTTP-less: it writes its name and closes.
type lan struct {
	t      *testing.T
	shared *Shared
	client *testenv.Host
	nodes  []*lanNode
}

type lanNode struct {
	*testenv.Host
	name    string
	monitor *Monitor
	stop    func()
}

const vip4, vip6 = "192.0.2.200", "fd00:2::c8"

func newLAN(t *testing.T, nodes int) *lan {
	testenv.RequireRoot(t)
	l := &lan{t: t, client: testenv.NewHost(t, "client")}
	l.shared = &Shared{synced: make(chan struct{}), plan: newPlan(), signs: map[string]sign{}, subs: map[*subscription]struct{}{}}
	close(l.shared.synced)
	l.client.AddBridge(t, "br0")
	l.client.AddAddr(t, "br0", "192.0.2.1/24")
	l.client.AddAddr(t, "br0", "fd00:2::1/64")
	for i := range nodes {
		n := &lanNode{Host: testenv.NewHost(t, fmt.Sprint("n", i)), name: fmt.Sprint("node-", i), monitor: NewMonitor()}
		// A link that goes down keeps its addresses, as network managers see to it.
		n.Sysctl(t, "net/ipv6/conf/default/keep_addr_on_down", "1")
		n.Sysctl(t, "net/ipv6/conf/all/keep_addr_on_down", "1")
		n.Connect(t, "eth0", l.client, fmt.Sprint("port", i))
		l.client.AddPort(t, "br0", fmt.Sprint("port", i))
		ip4, ip6 := fmt.Sprintf("192.0.2.%d", 10+i), fmt.Sprintf("fd00:2::%d", 10+i)
		n.AddAddr(t, "eth0", ip4+"/24")
		n.AddAddr(t, "eth0", ip6+"/64")
		// In place of a data plane: the addresses are local, and the kernel
		// answers ARP only for what the interface has.
		n.Sysctl(t, "net/ipv4/conf/all/arp_ignore", "1")
		n.local(t, vip4+"/32")
		n.local(t, vip6+"/128")
		n.serve(t, "tcp4", "0.0.0.0:80")
		n.serve(t, "tcp6", "[::]:80")
		facts := nodeFacts{addrs: []netip.Addr{netip.MustParseAddr(ip4), netip.MustParseAddr(ip6)}}
		l.shared.update(func(p *plan) ([]netip.Addr, bool) { return p.setNode(n.name, &facts) })
		l.nodes = append(l.nodes, n)
	}
	for _, n := range l.nodes {
		l.start(n)
	}
	return l
}

func (n *lanNode) local(t *testing.T, prefix string) {
	t.Helper()
	p := netip.MustParsePrefix(prefix)
	lo, err := n.NL.LinkByName("lo")
	if err == nil {
		dst := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
		err = n.NL.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Type: 2, Table: 255, Scope: netlink.SCOPE_HOST})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (n *lanNode) serve(t *testing.T, network, address string) {
	ln := n.Listen(t, network, address)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s %s", n.name, c.RemoteAddr())
			c.Close()
		}
	}()
}

func (l *lan) start(n *lanNode) {
	level := slog.LevelError
	if os.Getenv("FAIRWAY_TEST_DEBUG") != "" {
		level = slog.LevelDebug
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		err := Run(ctx, Options{NodeName: n.name, NetNS: n.NS, Shared: l.shared, Monitor: n.monitor, Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))})
		if err != nil {
			l.t.Errorf("announcer of %s: %v", n.name, err)
		}
	})
	n.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	l.t.Cleanup(n.stop)
}

// service says that a Service has an address, and which nodes have endpoints
// (nil: policy Cluster).
func (l *lan) service(name string, endpoints map[string]struct{}, addrs ...string) {
	f := &serviceFacts{local: endpoints != nil, origin: make([]string, len(addrs))}
	for _, a := range addrs {
		f.addrs = append(f.addrs, netip.MustParseAddr(a))
	}
	l.shared.update(func(p *plan) ([]netip.Addr, bool) {
		of := func() map[string]struct{} { return endpoints }
		return append(p.setService("default/"+name, f, of), p.setEndpoints("default/"+name, of)...), false
	})
}

// ask connects from the client and returns which node answers.
func (l *lan) ask(address string, timeout time.Duration) (string, error) {
	c, err := l.client.Dial("tcp", net.JoinHostPort(address, "80"), timeout)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(timeout))
	b, err := io.ReadAll(c)
	if err != nil || len(b) == 0 {
		return "", fmt.Errorf("no answer: %v", err)
	}
	name, _, _ := strings.Cut(string(b), " ")
	return name, nil
}

// answered waits until some node answers, one that is not in the way of want.
func (l *lan) answered(address string, want func(string) bool) (node string, took time.Duration) {
	l.t.Helper()
	start := time.Now()
	for time.Since(start) < 30*time.Second {
		n, err := l.ask(address, 250*time.Millisecond)
		if err == nil && want(n) {
			return n, time.Since(start)
		}
	}
	l.t.Fatalf("%s: nobody fit answered within 30 s", address)
	return "", 0
}

// owner is the MAC address that the client's neighbour table has for an address.
func (l *lan) owner(address string) string {
	l.t.Helper()
	neighs, err := l.client.NL.NeighList(0, netlink.FAMILY_ALL)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, n := range neighs {
		if n.IP.String() == address {
			return n.HardwareAddr.String()
		}
	}
	return ""
}

func (l *lan) node(name string) *lanNode {
	for _, n := range l.nodes {
		if n.name == name {
			return n
		}
	}
	l.t.Fatalf("no node %q", name)
	return nil
}

// settled waits until the client finds an address at the node that is elected
// for it, for half a second without a break, and returns the node. All nodes
// start at once in these tests, and take addresses from each other then.
func (l *lan) settled(vip string) string {
	l.t.Helper()
	node, _ := l.answered(vip, l.elected(vip))
	eth0, err := l.node(node).NL.LinkByName("eth0")
	if err != nil {
		l.t.Fatal(err)
	}
	good := 0
	for end := time.Now().Add(30 * time.Second); good < 10; time.Sleep(50 * time.Millisecond) {
		good++
		if l.owner(vip) != eth0.Attrs().HardwareAddr.String() {
			good = 0
			_, _ = l.ask(vip, 250*time.Millisecond)
		}
		if time.Now().After(end) {
			l.t.Fatalf("%s is at %s for the client, and %s has %s", vip, l.owner(vip), node, eth0.Attrs().HardwareAddr)
		}
	}
	return node
}

// elected says which node should announce an address while all are alive.
func (l *lan) elected(vip string) func(string) bool {
	all := set()
	for _, n := range l.nodes {
		all[n.name] = struct{}{}
	}
	want := elect(netip.MustParseAddr(vip), all, all)
	return func(n string) bool { return n == want }
}

func TestReachedByARPAndNDP(t *testing.T) {
	l := newLAN(t, 3)
	l.service("web", nil, vip4, vip6)
	for _, vip := range []string{vip4, vip6} {
		node, took := l.answered(vip, l.elected(vip))
		t.Logf("%s: %s answers after %s", vip, node, took)
		l.settled(vip)
	}
	// Only one answers: count the replies to an ARP request.
	if n := countReplies(t, l.client, netip.MustParseAddr(vip4)); n != 1 {
		t.Errorf("%d nodes answered for %s", n, vip4)
	}

	// What is gone is answered for no longer.
	l.shared.update(func(p *plan) ([]netip.Addr, bool) { return p.setService("default/web", nil, nil), false })
	for end := time.Now().Add(30 * time.Second); countReplies(t, l.client, netip.MustParseAddr(vip4)) != 0; {
		if time.Now().After(end) {
			t.Fatal("a node still answers for an address that no Service has")
		}
	}
}

// TestFailover takes a node's cable away under load, and prints how long the
// client had no answer.
func TestFailover(t *testing.T) {
	for _, vip := range []string{vip4, vip6} {
		t.Run(vip, func(t *testing.T) {
			l := newLAN(t, 3)
			l.service("web", nil, vip)
			first := l.settled(vip)
			// Load: connections all the time, from several clients at once.
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var wg sync.WaitGroup
			defer wg.Wait()
			defer cancel()
			for range 4 {
				wg.Go(func() {
					for ctx.Err() == nil {
						_, _ = l.ask(vip, 100*time.Millisecond)
						time.Sleep(10 * time.Millisecond)
					}
				})
			}
			link, err := l.node(first).NL.LinkByName("eth0")
			if err != nil {
				t.Fatal(err)
			}
			if err := l.node(first).NL.LinkSetDown(link); err != nil {
				t.Fatal(err)
			}
			second, took := l.answered(vip, func(n string) bool { return n != first })
			t.Logf("%s: %s died, %s answered %s later", vip, first, second, took)
			if took > 3*time.Second {
				t.Errorf("failover took %s, more than 3 s", took)
			}
			// The cable is back: so is the address, and one answers.
			if err := l.node(first).NL.LinkSetUp(link); err != nil {
				t.Fatal(err)
			}
			_, took = l.answered(vip, func(n string) bool { return n == first })
			t.Logf("%s: %s is back %s after its cable", vip, first, took)
			// In good order it goes without a gap worth the name.
			start := time.Now()
			l.node(first).stop()
			_, took = l.answered(vip, func(n string) bool { return n == second })
			t.Logf("%s: %s left in good order, %s answered %s later", vip, first, second, time.Since(start))
			if took > 3*time.Second {
				t.Errorf("handing over took %s", took)
			}
		})
	}
}

// TestLocalFollowsEndpoints moves an address with the endpoints of its Service.
func TestLocalFollowsEndpoints(t *testing.T) {
	l := newLAN(t, 3)
	for _, n := range []string{"node-2", "node-0", "node-1"} {
		l.service("web", set(n), vip4, vip6)
		for _, vip := range []string{vip4, vip6} {
			_, took := l.answered(vip, func(got string) bool { return got == n })
			t.Logf("%s: %s answers %s after it has the only endpoint", vip, n, took)
		}
	}
	l.service("web", set(), vip4)
	for end := time.Now().Add(30 * time.Second); countReplies(t, l.client, netip.MustParseAddr(vip4)) != 0; {
		if time.Now().After(end) {
			t.Fatal("a node without an endpoint answers")
		}
	}
}

// TestManyAddressesOneAnswerEach asks for 200 addresses while a node joins:
// each has one node at any time, and together they are spread.
func TestManyAddressesOneAnswerEach(t *testing.T) {
	l := newLAN(t, 3)
	var addrs []netip.Addr
	a := netip.MustParseAddr("192.0.2.20")
	for range 150 {
		a = a.Next()
		addrs = append(addrs, a)
		l.service(a.String(), nil, a.String())
	}
	last := vip4All(l, addrs)
	l.answered(last, l.elected(last))
	count := func() map[string]int {
		who := map[string]int{}
		for _, a := range addrs {
			macs := replies(t, l.client, a, 20*time.Millisecond)
			for end := time.Now().Add(10 * time.Second); len(macs) == 0 && time.Now().Before(end); {
				macs = replies(t, l.client, a, 200*time.Millisecond)
			}
			if len(macs) > 1 {
				t.Errorf("%s: %d nodes answer", a, len(macs))
			}
			for m := range macs {
				who[m]++
			}
		}
		return who
	}
	who := count()
	total := 0
	for _, n := range who {
		total += n
		if n < 25 {
			t.Errorf("not spread evenly: %v", who)
		}
	}
	if total != len(addrs) || len(who) != 3 {
		t.Errorf("answers for %d of %d addresses from %d nodes", total, len(addrs), len(who))
	}
	t.Log(who)
}

// vip4All has one of the addresses accept connections, so that one shows that
// announcing has begun.
func vip4All(l *lan, addrs []netip.Addr) string {
	for _, n := range l.nodes {
		n.local(l.t, addrs[len(addrs)-1].String()+"/32")
	}
	return addrs[len(addrs)-1].String()
}
