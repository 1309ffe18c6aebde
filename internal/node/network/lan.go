package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/netns"
)

const bridgeName = "br0"

// Network is the machine, the switch and the nodes plugged into it. Its
// methods may be called at the same time.
type Network struct {
	cfg     Config
	machine *netns.NS
	mnl     *netlink.Handle // rtnetlink in the machine's namespace
	lan     *netns.NS       // the switch; nil in host mode
	snl     *netlink.Handle // rtnetlink in the switch
	mtu     int

	mu    sync.Mutex // guards nodes and the routes derived from them
	nodes map[int]*Node
}

// Open makes the network, or takes over what an earlier process with the same
// prefix has left running; Pods in it notice nothing.
func Open(cfg Config) (_ *Network, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	n := &Network{cfg: cfg, machine: cfg.Machine, nodes: map[int]*Node{}}
	if n.machine == nil {
		if n.machine, err = netns.Current(); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			n.release()
		}
	}()
	if n.mnl, err = newHandle(n.machine); err != nil {
		return nil, fmt.Errorf("open the machine's network: %w", err)
	}
	n.mtu = n.egressMTU()
	if !cfg.Host {
		if err := n.openSwitch(); err != nil {
			return nil, err
		}
	}
	if err := n.machine.Do(n.machineSysctls); err != nil {
		return nil, err
	}
	if err := n.masquerade(); err != nil {
		// Without the way out everything inside still works.
		cfg.Logger.Warn("Pods cannot reach the world: no masquerade", "table", cfg.tableName(), "err", err)
	}
	return n, nil
}

// MTU is what every link here has: that of the machine's way out, so that no
// packet from a Pod is too long for it.
func (n *Network) MTU() int { return n.mtu }

// Node returns node index, nil if it has no power.
func (n *Network) Node(index int) *Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.nodes[index]
}

// Machine is the machine's namespace.
func (n *Network) Machine() *netns.NS { return n.machine }

func (n *Network) openSwitch() (err error) {
	name := n.cfg.Prefix + "-lan"
	if n.lan, err = openOrCreate(name); err != nil {
		return fmt.Errorf("make the switch: %w", err)
	}
	if n.snl, err = newHandle(n.lan); err != nil {
		return fmt.Errorf("make the switch: %w", err)
	}
	if err := n.lan.Do(func() error {
		// A switch has no addresses of its own.
		return writeSysctl("net/ipv6/conf/default/disable_ipv6", "1")
	}); err != nil {
		n.cfg.Logger.Debug("switch keeps IPv6", "err", err)
	}
	br, err := n.snl.LinkByName(bridgeName)
	if err != nil {
		la := netlink.NewLinkAttrs()
		la.Name, la.MTU, la.Flags = bridgeName, n.mtu, net.FlagUp
		snoop := false
		if err := n.snl.LinkAdd(&netlink.Bridge{LinkAttrs: la, MulticastSnooping: &snoop}); err != nil {
			return fmt.Errorf("make the switch's bridge: %w", err)
		}
		if br, err = n.snl.LinkByName(bridgeName); err != nil {
			return err
		}
	}
	if err := n.snl.LinkSetUp(br); err != nil {
		return err
	}
	link, err := n.mnl.LinkByName(n.cfg.Prefix)
	if err != nil {
		la := netlink.NewLinkAttrs()
		la.Name, la.MTU, la.Flags = n.cfg.Prefix, n.mtu, net.FlagUp
		v := &netlink.Veth{LinkAttrs: la, PeerName: "machine", PeerNamespace: netlink.NsFd(n.lan.Fd()), PeerMTU: uint32(n.mtu)}
		if err := n.mnl.LinkAdd(v); err != nil {
			return fmt.Errorf("plug the machine into the switch (link %s): %w", n.cfg.Prefix, err)
		}
		if link, err = n.mnl.LinkByName(n.cfg.Prefix); err != nil {
			return err
		}
	}
	if err := n.plug("machine"); err != nil {
		return err
	}
	if err := allowIPv6(n.machine, n.cfg.Prefix); err != nil {
		return err
	}
	for _, p := range n.cfg.MachineAddrs() {
		if err := addAddr(n.mnl, link, p); err != nil {
			return fmt.Errorf("give the machine %v: %w", p, err)
		}
	}
	return n.mnl.LinkSetUp(link)
}

// plug makes a link in the switch a port of its bridge, up.
func (n *Network) plug(port string) error {
	br, err := n.snl.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	l, err := n.snl.LinkByName(port)
	if err != nil {
		return fmt.Errorf("port %s of the switch: %w", port, err)
	}
	if err := n.snl.LinkSetMaster(l, br); err != nil {
		return fmt.Errorf("port %s of the switch: %w", port, err)
	}
	return n.snl.LinkSetUp(l)
}

// machineSysctls lets the machine forward what nodes send to the world. It
// runs on a thread in the machine's namespace.
func (n *Network) machineSysctls() error {
	s, err := openSysctls(n.cfg.StateDir)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range n.cfg.PodCIDRs {
		if p.Addr().Is4() {
			errs = append(errs, s.set("net/ipv4/ip_forward", "1"))
			continue
		}
		if !n.cfg.Host && !n.hasWayOut(netlink.FAMILY_V6) {
			continue // nothing to forward to
		}
		if v, err := readSysctl("net/ipv6/conf/all/forwarding"); err == nil && v == "1" {
			continue
		}
		// A forwarding machine would stop listening to its own router (RFC 4861,
		// 6.2.1); 2 tells the kernel to go on. See ip-sysctl.rst, accept_ra.
		ents, _ := os.ReadDir("/proc/sys/net/ipv6/conf")
		for _, e := range ents {
			key := "net/ipv6/conf/" + e.Name() + "/accept_ra"
			if v, err := readSysctl(key); err == nil && v == "1" && e.Name() != "lo" && e.Name() != n.cfg.Prefix {
				errs = append(errs, s.set(key, "2"))
			}
		}
		errs = append(errs, s.set("net/ipv6/conf/all/forwarding", "1"))
	}
	if err := errors.Join(errs...); err != nil {
		if n.cfg.Host {
			return fmt.Errorf("let the machine forward: %w", err)
		}
		n.cfg.Logger.Warn("Pods cannot reach the world: the machine does not forward", "err", err)
	}
	return nil
}

func (n *Network) defaultRoute(family int) *netlink.Route {
	routes, err := n.mnl.RouteList(nil, family)
	if err != nil {
		return nil
	}
	for i := range routes {
		r := &routes[i]
		if ones := 0; r.Dst == nil || func() bool { ones, _ = r.Dst.Mask.Size(); return ones == 0 }() {
			if r.Type == 0 || r.Type == unix.RTN_UNICAST {
				return r
			}
		}
	}
	return nil
}

func (n *Network) hasWayOut(family int) bool { return n.defaultRoute(family) != nil }

func (n *Network) egressMTU() int {
	mtu := 0
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if r := n.defaultRoute(f); r != nil && r.LinkIndex > 0 {
			if l, err := n.mnl.LinkByIndex(r.LinkIndex); err == nil && (mtu == 0 || l.Attrs().MTU < mtu) {
				mtu = l.Attrs().MTU
			}
		}
	}
	if mtu < 1280 || mtu > 9216 {
		return 1500
	}
	return mtu
}

// release gives up handles and leaves the network as it is.
func (n *Network) release() {
	for _, nd := range n.nodes {
		nd.nl.Close()
		nd.NS.Close()
	}
	if n.snl != nil {
		n.snl.Close()
	}
	if n.lan != nil {
		n.lan.Close()
	}
	if n.mnl != nil {
		n.mnl.Close()
	}
	if n.cfg.Machine == nil && n.machine != nil {
		n.machine.Close()
	}
}

// Release gives up what this process holds and leaves the network running, to
// be taken over by the next Open.
func (n *Network) Release() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.release()
	n.nodes = map[int]*Node{}
}

func newHandle(ns *netns.NS) (*netlink.Handle, error) {
	var h *netlink.Handle
	err := ns.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	return h, err
}

func openOrCreate(name string) (*netns.NS, error) {
	ns, err := netns.Open(name)
	if err == nil {
		return ns, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		// A name whose mount has gone, from before a reboot.
		if err := netns.Delete(name); err != nil {
			return nil, err
		}
	}
	return netns.Create(name)
}

func addAddr(h *netlink.Handle, l netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		// Nobody else can have it; detection would hold it back for a second.
		a.Flags = unix.IFA_F_NODAD
	}
	return h.AddrReplace(l, a)
}
