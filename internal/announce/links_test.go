package announce

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/testenv"
)

func TestChoose(t *testing.T) {
	mk := func(name string, port bool, prefixes ...string) link {
		l := link{iface: net.Interface{Name: name}, enslaved: port}
		for _, p := range prefixes {
			l.prefixes = append(l.prefixes, netip.MustParsePrefix(p))
		}
		return l
	}
	lan := []link{mk("eth0", false, "192.0.2.10/24", "fd00:2::10/64"), mk("eth0.7", false, "198.51.100.10/24"), mk("bond0", false), mk("eth1", true)}
	// A rented machine: its address stands alone, the router is beside it.
	alone := []link{mk("ens3", false, "203.0.113.9/32", "2001:db8::9/128"), mk("cni0", false, "10.244.0.1/24")}
	nodes := []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8::9")}
	for _, tt := range []struct {
		links    []link
		patterns []string
		addr     string
		want     []string
	}{
		{lan, nil, "192.0.2.200", []string{"eth0"}},
		{lan, nil, "fd00:2::c8", []string{"eth0"}},
		{lan, nil, "198.51.100.200", []string{"eth0.7"}},
		{lan, nil, "203.0.113.1", []string{"eth0"}},
		{lan, []string{"eth*"}, "192.0.2.200", []string{"eth0", "eth0.7", "eth1"}},
		{lan, []string{"eth1"}, "192.0.2.200", []string{"eth1"}},
		{lan, []string{"lan0"}, "192.0.2.200", nil},
		{alone, nil, "203.0.113.77", []string{"ens3"}},
		{alone, nil, "2001:db8::77", []string{"ens3"}},
		{alone, nil, "10.244.0.77", []string{"cni0"}},
	} {
		var got []string
		for _, l := range choose(tt.links, tt.patterns, netip.MustParseAddr(tt.addr), nodes) {
			got = append(got, l.iface.Name)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s with %v: %v, want %v", tt.addr, tt.patterns, got, tt.want)
		}
	}
}

func TestUseful(t *testing.T) {
	const up = net.FlagUp | net.FlagRunning | net.FlagBroadcast
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for _, tt := range []struct {
		name     string
		attrs    netlink.LinkAttrs
		master   netlink.Link
		ok, port bool
	}{
		{"a network card", netlink.LinkAttrs{Flags: up, HardwareAddr: mac}, nil, true, false},
		{"one that does not report its carrier", netlink.LinkAttrs{Flags: up &^ net.FlagRunning, OperState: netlink.OperUnknown, HardwareAddr: mac}, nil, true, false},
		{"without a cable", netlink.LinkAttrs{Flags: up &^ net.FlagRunning, OperState: netlink.OperDown, HardwareAddr: mac}, nil, false, false},
		{"down", netlink.LinkAttrs{Flags: net.FlagBroadcast, HardwareAddr: mac}, nil, false, false},
		{"loopback", netlink.LinkAttrs{Flags: up | net.FlagLoopback, HardwareAddr: make(net.HardwareAddr, 6)}, nil, false, false},
		{"dummy", netlink.LinkAttrs{Flags: up, RawFlags: unix.IFF_NOARP, HardwareAddr: mac}, nil, false, false},
		{"tunnel", netlink.LinkAttrs{Flags: net.FlagUp | net.FlagRunning | net.FlagPointToPoint}, nil, false, false},
		{"InfiniBand", netlink.LinkAttrs{Flags: up, HardwareAddr: make(net.HardwareAddr, 20)}, nil, false, false},
		{"port of a bridge", netlink.LinkAttrs{Flags: up, HardwareAddr: mac, MasterIndex: 7}, &netlink.Bridge{}, true, true},
		{"port of a bond", netlink.LinkAttrs{Flags: up, HardwareAddr: mac, MasterIndex: 7}, &netlink.Bond{}, true, true},
		{"port of what has just gone", netlink.LinkAttrs{Flags: up, HardwareAddr: mac, MasterIndex: 7}, nil, true, true},
		{"member of a VRF", netlink.LinkAttrs{Flags: up, HardwareAddr: mac, MasterIndex: 7}, &netlink.Vrf{}, true, false},
	} {
		if ok, port := useful(&tt.attrs, tt.master); ok != tt.ok || ok && port != tt.port {
			t.Errorf("%s: %v %v, want %v %v", tt.name, ok, port, tt.ok, tt.port)
		}
	}
}

// add makes a link in a namespace; it skips what the kernel does not have.
func add(t *testing.T, h *testenv.Host, l netlink.Link) netlink.Link {
	t.Helper()
	err := h.NL.LinkAdd(l)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTSUP) {
		t.Logf("the kernel has no links of type %s", l.Type())
		return nil
	}
	if err == nil {
		err = h.NL.LinkSetUp(l)
	}
	if err != nil {
		t.Fatalf("link %s: %v", l.Attrs().Name, err)
	}
	return l
}

// TestLinksOf reads links of many kinds.
func TestLinksOf(t *testing.T) {
	testenv.RequireRoot(t)
	h, peer := testenv.NewHost(t, "links"), testenv.NewHost(t, "peer")
	want := map[string]bool{} // name: whether it is a master's port
	for _, name := range []string{"eth0", "eth1", "eth2"} {
		h.Connect(t, name, peer, "to-"+name)
		want[name] = false
	}
	named := func(name string) netlink.LinkAttrs { a := netlink.NewLinkAttrs(); a.Name = name; return a }
	byName := func(name string) netlink.Link {
		l, err := h.NL.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	h.AddAddr(t, "eth0", "192.0.2.10/32")
	vlan := named("eth0.7")
	vlan.ParentIndex = byName("eth0").Attrs().Index
	if add(t, h, &netlink.Vlan{LinkAttrs: vlan, VlanId: 7}) != nil {
		want["eth0.7"] = false
	}
	bond := netlink.NewLinkBond(named("bond0"))
	bond.Mode = netlink.BOND_MODE_ACTIVE_BACKUP
	if b := add(t, h, bond); b != nil {
		if err := h.NL.LinkSetDown(byName("eth1")); err != nil {
			t.Fatal(err)
		}
		if err := h.NL.LinkSetMaster(byName("eth1"), b); err != nil {
			t.Fatal(err)
		}
		if err := h.NL.LinkSetUp(byName("eth1")); err != nil {
			t.Fatal(err)
		}
		want["bond0"], want["eth1"] = false, true
	}
	if v := add(t, h, &netlink.Vrf{LinkAttrs: named("red"), Table: 100}); v != nil {
		if err := h.NL.LinkSetMaster(byName("eth2"), v); err != nil {
			t.Fatal(err)
		}
	}
	add(t, h, &netlink.Dummy{LinkAttrs: named("dummy0")}) // has no neighbours
	var got map[string]bool
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		links, err := linksOf(h.NS)
		if err != nil {
			t.Fatal(err)
		}
		got = map[string]bool{}
		for _, l := range links {
			got[l.iface.Name] = l.enslaved
			if l.iface.Name == "eth0" && !slices.Contains(l.prefixes, netip.MustParsePrefix("192.0.2.10/32")) {
				t.Errorf("eth0 has %v", l.prefixes)
			}
		}
		same := len(got) == len(want)
		for name, port := range want {
			p, ok := got[name]
			same = same && ok && p == port
		}
		if same {
			break
		}
		if time.Now().After(end) { // bonds take a moment to have a carrier
			t.Fatalf("links %v, want %v", got, want)
		}
	}
}
