package network

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"fairway.dev/fairway/internal/netns"
	"fairway.dev/fairway/internal/testenv"
)

func testConfig(t *testing.T, m *testenv.Host) Config {
	return Config{
		Prefix:    fmt.Sprintf("f%d", os.Getpid()%10000000),
		NodeCIDRs: []netip.Prefix{netip.MustParsePrefix("172.30.0.0/24"), netip.MustParsePrefix("fd00:172:30::/64")},
		PodCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")},
		StateDir:  t.TempDir(),
		Machine:   m.NS,
	}
}

func open(t *testing.T, cfg Config) *Network {
	t.Helper()
	n, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.Release()
		if err := Cleanup(cfg); err != nil {
			t.Errorf("clean up: %v", err)
		}
		if left, _ := netns.List(cfg.Prefix); len(left) > 0 {
			t.Errorf("namespaces left behind: %v", left)
		}
	})
	return n
}

// serve answers every connection to port 80 of a namespace with the client's
// address.
func serve(t *testing.T, ns *netns.NS) {
	t.Helper()
	l, err := ns.Listen(t.Context(), "tcp", "[::]:80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			io.WriteString(c, host) //nolint:errcheck
			c.Close()
		}
	}()
}

// ask returns what a server behind addr:80 takes the client in ns for.
func ask(t *testing.T, ns *netns.NS, addr netip.Addr, port uint16) string {
	t.Helper()
	var last error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		c, err := ns.DialContext(t.Context(), "tcp", netip.AddrPortFrom(addr, port).String())
		if err != nil {
			last = err
			continue
		}
		b, err := io.ReadAll(c)
		c.Close()
		if err == nil && len(b) > 0 {
			return netip.MustParseAddr(string(b)).Unmap().String()
		}
		last = err
	}
	t.Fatalf("ask %v from %s: %v", addr, ns.Name(), last)
	return ""
}

func addPod(t *testing.T, nd *Node) (*Pod, *netns.NS) {
	t.Helper()
	p, err := nd.AddPod("")
	if err != nil {
		t.Fatal(err)
	}
	ns, err := p.OpenPod()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return p, ns
}

func TestNetwork(t *testing.T) {
	testenv.RequireRoot(t)
	machine, world := testenv.NewHost(t, "machine"), testenv.NewHost(t, "world")
	machine.Connect(t, "wan", world, "lan")
	machine.AddAddr(t, "wan", "192.0.2.2/24")
	machine.AddAddr(t, "wan", "2001:db8::2/64")
	world.AddAddr(t, "lan", "192.0.2.1/24")
	world.AddAddr(t, "lan", "2001:db8::1/64")
	machine.AddRoute(t, "default4", "192.0.2.1")
	machine.AddRoute(t, "default6", "2001:db8::1")
	machine.Sysctl(t, "net/ipv4/ip_forward", "0")
	machine.Sysctl(t, "net/ipv6/conf/all/forwarding", "0")
	if err := func() error {
		l, err := machine.NL.LinkByName("wan")
		if err != nil {
			return err
		}
		return machine.NL.LinkSetMTU(l, 1400)
	}(); err != nil {
		t.Fatal(err)
	}

	cfg := testConfig(t, machine)
	n := open(t, cfg)
	if n.MTU() != 1400 {
		t.Errorf("MTU %d, want that of the way out, 1400", n.MTU())
	}
	var nodes []*Node
	for i := 1; i <= 3; i++ {
		nd, err := n.AddNode(i, fmt.Sprintf("node-%d", i))
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, nd)
	}
	p1, ns1 := addPod(t, nodes[0])
	p2, ns2 := addPod(t, nodes[1])
	_, ns1b := addPod(t, nodes[0])
	serve(t, ns2)
	serve(t, world.NS)
	serve(t, machine.NS)
	serve(t, nodes[2].NS)

	for i := range p2.Addrs {
		gw := n.cfg.MachineAddrs()[i].Addr()
		outside := netip.MustParseAddr([]string{"192.0.2.1", "2001:db8::1"}[i])
		masq := []string{"192.0.2.2", "2001:db8::2"}[i]
		for _, c := range []struct {
			what string
			from *netns.NS
			to   netip.Addr
			want string
		}{
			{"Pod to Pod across nodes", ns1, p2.Addrs[i], p1.Addrs[i].String()},
			{"Pod to itself", ns2, p2.Addrs[i], p2.Addrs[i].String()},
			{"node to Pod of another", nodes[2].NS, p2.Addrs[i], nodes[2].Addrs[i].String()},
			{"node to its own Pod", nodes[1].NS, p2.Addrs[i], nodes[1].Addrs[i].String()},
			{"machine to Pod", machine.NS, p2.Addrs[i], gw.String()},
			{"Pod to machine", ns1, gw, p1.Addrs[i].String()},
			{"Pod to node", ns1, nodes[2].Addrs[i], p1.Addrs[i].String()},
			{"Pod to world, masqueraded", ns1b, outside, masq},
			{"node to world, masqueraded", nodes[0].NS, outside, masq},
		} {
			if got := ask(t, c.from, c.to, 80); got != c.want {
				t.Errorf("%s: the server at %v saw %s, want %s", c.what, c.to, got, c.want)
			}
		}
	}

	t.Run("host port", func(t *testing.T) {
		if err := nodes[1].SetHostPorts(map[*Pod][]HostPort{p2: {{HostPort: 8080, Protocol: 6, PodPort: 80}}}); err != nil {
			t.Fatal(err)
		}
		for i := range p2.Addrs {
			if got := ask(t, ns1, nodes[1].Addrs[i], 8080); got != p1.Addrs[i].String() {
				t.Errorf("from a Pod: saw %s", got)
			}
			ask(t, ns2, nodes[1].Addrs[i], 8080) // hairpin
			ask(t, nodes[1].NS, nodes[1].Addrs[i], 8080)
		}
		if err := nodes[1].SetHostPorts(nil); err != nil {
			t.Fatal(err)
		}
		if c, err := ns1.DialContext(t.Context(), "tcp", netip.AddrPortFrom(nodes[1].Addrs[0], 8080).String()); err == nil {
			c.Close()
			t.Error("host port answers after its removal")
		}
	})

	t.Run("cable", func(t *testing.T) {
		if err := nodes[1].SetCable(false); err != nil {
			t.Fatal(err)
		}
		d := net.Dialer{Timeout: 300 * time.Millisecond}
		if err := ns1.Do(func() error {
			c, err := d.Dial("tcp", netip.AddrPortFrom(p2.Addrs[0], 80).String())
			if err == nil {
				c.Close()
			}
			return err
		}); err == nil {
			t.Error("a node with its cable cut answers")
		}
		if err := nodes[1].SetCable(true); err != nil {
			t.Fatal(err)
		}
		ask(t, ns1, p2.Addrs[0], 80)
		ask(t, ns1, p2.Addrs[1], 80)
	})

	t.Run("removed Pod", func(t *testing.T) {
		p, ns := addPod(t, nodes[2])
		serve(t, ns)
		ask(t, ns1, p.Addrs[0], 80)
		if err := nodes[2].RemovePod(p); err != nil {
			t.Fatal(err)
		}
		if c, err := ns1.DialContext(t.Context(), "tcp", netip.AddrPortFrom(p.Addrs[0], 80).String()); err == nil {
			c.Close()
			t.Error("a removed Pod answers")
		}
		again, _ := addPod(t, nodes[2])
		if again.Addrs[0] == p.Addrs[0] {
			t.Errorf("address %v was used again at once", p.Addrs[0])
		}
	})

	t.Run("taken over by a second process", func(t *testing.T) {
		n2, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer n2.Release()
		nd, err := n2.AddNode(2, "node-2")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nd.AdoptPod(Pod{NSName: p2.NSName, Addrs: p2.Addrs}); err != nil {
			t.Fatal(err)
		}
		fresh, err := nd.AddPod("")
		if err != nil {
			t.Fatal(err)
		}
		if fresh.Addrs[0] == p2.Addrs[0] {
			t.Error("the address of an adopted Pod was given away")
		}
		ask(t, ns1, p2.Addrs[0], 80)
	})

	t.Run("clean-up", func(t *testing.T) {
		if err := Cleanup(cfg); err != nil {
			t.Fatal(err)
		}
		links, err := machine.NL.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			if name := l.Attrs().Name; name != "lo" && name != "wan" {
				t.Errorf("link %s is left", name)
			}
		}
		routes, _ := machine.NL.RouteList(nil, netlink.FAMILY_V4)
		for _, r := range routes {
			if r.Dst != nil && (r.Dst.IP.String() == "10.244.1.0" || r.Dst.IP.String() == "172.30.0.0") {
				t.Errorf("route %v is left", r)
			}
		}
		machine.NS.Do(func() error { //nolint:errcheck
			for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
				if v, err := readSysctl(key); err != nil || v != "0" {
					t.Errorf("sysctl %s is %q (%v) afterwards, was 0", key, v, err)
				}
			}
			return nil
		})
	})
}

// The machine itself as the node: Pods hang directly off it.
func TestHostMode(t *testing.T) {
	testenv.RequireRoot(t)
	machine, world := testenv.NewHost(t, "machine"), testenv.NewHost(t, "world")
	machine.Connect(t, "wan", world, "lan")
	machine.AddAddr(t, "wan", "192.0.2.2/24")
	world.AddAddr(t, "lan", "192.0.2.1/24")
	machine.AddRoute(t, "default4", "192.0.2.1")
	cfg := testConfig(t, machine)
	cfg.Prefix = "h" + cfg.Prefix[1:]
	cfg.Host = true
	n := open(t, cfg)
	nd, err := n.AddNode(1, "machine")
	if err != nil {
		t.Fatal(err)
	}
	if nd.Addrs[0].String() != "192.0.2.2" {
		t.Errorf("node addresses %v", nd.Addrs)
	}
	p, ns := addPod(t, nd)
	serve(t, ns)
	serve(t, world.NS)
	ask(t, machine.NS, p.Addrs[0], 80)
	if got := ask(t, ns, netip.MustParseAddr("192.0.2.1"), 80); got != "192.0.2.2" {
		t.Errorf("the world saw %s", got)
	}
	if err := Cleanup(cfg); err != nil {
		t.Fatal(err)
	}
	links, _ := machine.NL.LinkList()
	if len(links) != 2 {
		t.Errorf("%d links afterwards, want lo and wan", len(links))
	}
}

// TestMachineWithoutIPv6: many machines keep IPv6 off their links. Ours have it
// nevertheless, the machine's own stay as they are.
func TestMachineWithoutIPv6(t *testing.T) {
	testenv.RequireRoot(t)
	for _, host := range []bool{false, true} {
		t.Run(fmt.Sprintf("host=%t", host), func(t *testing.T) {
			machine, world := testenv.NewHost(t, "machine"), testenv.NewHost(t, "world")
			machine.Connect(t, "wan", world, "lan")
			machine.Sysctl(t, "net/ipv6/conf/all/disable_ipv6", "1") // the links' and the default
			machine.AddAddr(t, "wan", "192.0.2.2/24")
			machine.AddRoute(t, "default4", "192.0.2.1")
			cfg := testConfig(t, machine)
			cfg.Prefix = "v" + cfg.Prefix[1:]
			cfg.Host = host
			n := open(t, cfg)
			nd, err := n.AddNode(1, "node-1")
			if err != nil {
				t.Fatal(err)
			}
			p, ns := addPod(t, nd)
			serve(t, ns)
			_, other := addPod(t, nd)
			for _, a := range p.Addrs {
				ask(t, other, a, 80)
				if a.Is4() || !host { // as the node the machine has no IPv6 address to ask from
					ask(t, machine.NS, a, 80)
				}
			}
			if err := machine.NS.Do(func() error {
				for _, link := range []string{"lo", "wan", "all", "default"} {
					if v, err := readSysctl("net/ipv6/conf/" + link + "/disable_ipv6"); v != "1" {
						t.Errorf("disable_ipv6 of %s is %q now, %v", link, v, err)
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestIPAM(t *testing.T) {
	file := t.TempDir() + "/slot"
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/29"), netip.MustParsePrefix("fd00::/64")}
	p := newIPAM(cidrs, file)
	var got []string
	for range 3 {
		slot, a, err := p.allocate()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, a[0].String(), a[1].String())
		p.release(slot)
	}
	p = newIPAM(cidrs, file) // the next process goes on where this one was
	for range 2 {
		_, a, err := p.allocate()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, a[0].String())
	}
	want := "[10.0.0.2 fd00::2 10.0.0.3 fd00::3 10.0.0.4 fd00::4 10.0.0.5 10.0.0.6]"
	if fmt.Sprint(got) != want {
		t.Errorf("allocated %v\nwant      %s", got, want)
	}
	for range 3 {
		if _, _, err := p.allocate(); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := p.allocate(); err == nil {
		t.Error("a full CIDR still gave an address")
	}
}

func BenchmarkAddPod(b *testing.B) {
	testenv.RequireRoot(b)
	machine := testenv.NewHost(b, "machine")
	cfg := Config{Prefix: fmt.Sprintf("b%d", os.Getpid()%10000000), StateDir: b.TempDir(), Machine: machine.NS,
		NodeCIDRs: []netip.Prefix{netip.MustParsePrefix("172.30.0.0/24")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}}
	n, err := Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer Cleanup(cfg) //nolint:errcheck
	defer n.Release()
	nd, err := n.AddNode(1, "node-1")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		p, err := nd.AddPod("")
		if err != nil {
			b.Fatal(err)
		}
		if err := nd.RemovePod(p); err != nil {
			b.Fatal(err)
		}
	}
}
