package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/netns"
)

// Node is a namespace plugged into the switch, or the machine itself.
type Node struct {
	Index    int
	Name     string
	NS       *netns.NS
	Addrs    []netip.Addr   // one of each family, those of the LAN
	PodCIDRs []netip.Prefix // in the same order

	net  *Network
	nl   *netlink.Handle
	ipam *ipam
}

// NSName is the name of the node's namespace as in /run/netns; empty for the
// machine itself.
func (nd *Node) NSName() string {
	if nd.net.cfg.Host {
		return ""
	}
	return nd.net.cfg.nsName(nd.Name)
}

// nsName is the name of a node's namespace.
func (c *Config) nsName(node string) string { return c.Prefix + "-" + node }

func portName(index int) string { return "n" + strconv.Itoa(index) }

// AddNode plugs node index (from 1) in, with routes to and from all others, or
// takes it over where it is still there.
func (n *Network) AddNode(index int, name string) (_ *Node, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	defer func() {
		if err != nil {
			err = fmt.Errorf("make node %s: %w", name, err)
		}
	}()
	nd := &Node{Index: index, Name: name, net: n}
	if nd.PodCIDRs, err = n.cfg.NodePodCIDRs(index); err != nil {
		return nil, err
	}
	nd.ipam = newIPAM(nd.PodCIDRs, filepath.Join(n.cfg.StateDir, "last-slot-"+name+".json"))
	if n.cfg.Host {
		if nd.NS, err = netns.OpenPath(n.machine.Path()); err != nil {
			return nil, err
		}
		if nd.nl, err = newHandle(nd.NS); err != nil {
			return nil, err
		}
		nd.Addrs = n.hostAddrs()
		if len(nd.Addrs) == 0 {
			return nil, errors.New("the machine has no address on the link of its default route; give it one")
		}
		n.nodes[index] = nd
		return nd, nil
	}
	lanAddrs, err := n.cfg.NodeAddrs(index)
	if err != nil {
		return nil, err
	}
	for _, a := range lanAddrs {
		nd.Addrs = append(nd.Addrs, a.Addr())
	}
	if nd.NS, err = openOrCreate(n.cfg.nsName(name)); err != nil {
		return nil, err
	}
	if nd.nl, err = newHandle(nd.NS); err != nil {
		return nil, err
	}
	if err := nd.NS.Do(nodeSysctls); err != nil {
		return nil, err
	}
	eth0, err := nd.nl.LinkByName("eth0")
	if err != nil {
		la := netlink.NewLinkAttrs()
		la.Name, la.MTU = portName(index), n.mtu
		v := &netlink.Veth{LinkAttrs: la, PeerName: "eth0", PeerMTU: uint32(n.mtu),
			PeerNamespace: netlink.NsFd(nd.NS.Fd()), PeerHardwareAddr: macOf(nd.Addrs[0])}
		if err := n.snl.LinkAdd(v); err != nil {
			return nil, fmt.Errorf("plug into the switch: %w", err)
		}
		if eth0, err = nd.nl.LinkByName("eth0"); err != nil {
			return nil, err
		}
	}
	if err := n.plug(portName(index)); err != nil {
		return nil, err
	}
	if err := linkUp(nd.nl, "lo"); err != nil {
		return nil, err
	}
	for _, a := range lanAddrs {
		if err := addAddr(nd.nl, eth0, a); err != nil {
			return nil, fmt.Errorf("address %v: %w", a, err)
		}
	}
	if err := nd.nl.LinkSetUp(eth0); err != nil {
		return nil, err
	}
	for i, gw := range n.cfg.MachineAddrs() {
		if err := nd.nl.RouteReplace(&netlink.Route{Dst: ipNet(anyOf(gw.Addr())), Gw: gw.Addr().AsSlice(), LinkIndex: eth0.Attrs().Index}); err != nil {
			return nil, fmt.Errorf("default route via %v: %w", gw.Addr(), err)
		}
		// An address that no Pod has must not be sent back to the machine.
		if err := nd.nl.RouteReplace(&netlink.Route{Dst: ipNet(nd.PodCIDRs[i]), Type: unix.RTN_UNREACHABLE}); err != nil {
			return nil, fmt.Errorf("route for %v: %w", nd.PodCIDRs[i], err)
		}
	}
	for _, other := range n.nodes {
		if err := errors.Join(nd.routeTo(other), other.routeTo(nd)); err != nil {
			return nil, err
		}
	}
	if link, err := n.mnl.LinkByName(n.cfg.Prefix); err == nil {
		for i, p := range nd.PodCIDRs {
			if err := n.mnl.RouteReplace(&netlink.Route{Dst: ipNet(p), Gw: nd.Addrs[i].AsSlice(), LinkIndex: link.Attrs().Index}); err != nil {
				return nil, fmt.Errorf("the machine's route to %v: %w", p, err)
			}
		}
	}
	n.nodes[index] = nd
	return nd, n.machineRoutes()
}

// anyOf is the default route's destination in the address's family.
func anyOf(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// nodeSysctls makes a namespace a router without opinions. Links made later
// (the Pods') have no link-local address, which nobody would use.
func nodeSysctls() error {
	for _, kv := range [][2]string{
		{"net/ipv4/ip_forward", "1"},
		{"net/ipv4/conf/all/rp_filter", "0"},
		{"net/ipv4/conf/default/rp_filter", "0"},
		{"net/ipv4/conf/all/send_redirects", "0"},
		{"net/ipv4/conf/default/send_redirects", "0"},
		{"net/ipv4/conf/all/accept_redirects", "0"},
	} {
		if err := writeSysctl(kv[0], kv[1]); err != nil {
			return err
		}
	}
	for _, kv := range [][2]string{
		{"net/ipv6/conf/all/forwarding", "1"},
		{"net/ipv6/conf/default/accept_dad", "0"},
		{"net/ipv6/conf/all/accept_dad", "0"},
		{"net/ipv6/conf/default/accept_ra", "0"},
		{"net/ipv6/conf/all/disable_ipv6", "0"},
	} {
		// A machine without IPv6 has none of these.
		if err := writeSysctl(kv[0], kv[1]); err != nil && !isNotExist(err) {
			return err
		}
	}
	return nil
}

// routeTo enters the way to another node's Pods, and the node as a neighbour:
// fifty nodes asking for each other would overflow the kernel's neighbour
// table, of which the machine has one for all namespaces (arp(7), gc_thresh3);
// entries made by hand do not count.
func (nd *Node) routeTo(other *Node) error {
	eth0, err := nd.nl.LinkByName("eth0")
	if err != nil {
		return err
	}
	for i, p := range other.PodCIDRs {
		a := other.Addrs[i]
		if err := nd.nl.NeighSet(&netlink.Neigh{LinkIndex: eth0.Attrs().Index, IP: a.AsSlice(), HardwareAddr: macOf(other.Addrs[0]), State: unix.NUD_PERMANENT}); err != nil {
			return fmt.Errorf("neighbour %v: %w", a, err)
		}
		if err := nd.nl.RouteReplace(&netlink.Route{Dst: ipNet(p), Gw: a.AsSlice(), LinkIndex: eth0.Attrs().Index}); err != nil {
			return fmt.Errorf("route to %v via %v: %w", p, a, err)
		}
	}
	return nil
}

// machineRoutes spreads the machine's own traffic to Services over all nodes.
// The caller holds n.mu.
func (n *Network) machineRoutes() error {
	link, err := n.mnl.LinkByName(n.cfg.Prefix)
	if err != nil {
		return err
	}
	for _, dst := range n.cfg.MachineRoutes {
		r := &netlink.Route{Dst: ipNet(dst)}
		for _, nd := range n.nodes {
			for _, a := range nd.Addrs {
				if a.Is4() == dst.Addr().Is4() {
					r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{LinkIndex: link.Attrs().Index, Gw: a.AsSlice()})
				}
			}
		}
		if len(r.MultiPath) == 0 {
			n.mnl.RouteDel(&netlink.Route{Dst: r.Dst}) //nolint:errcheck // there may be none
			continue
		}
		if err := n.mnl.RouteReplace(r); err != nil {
			return fmt.Errorf("the machine's route to %v: %w", dst, err)
		}
	}
	return nil
}

// RemoveNode pulls the plug: the node's namespace, its Pods' and all in them
// go. What routes led to it stay, as they would on other machines.
func (n *Network) RemoveNode(nd *Node) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.nodes, nd.Index)
	nd.nl.Close()
	nd.NS.Close()
	errs := []error{deleteAll(podPrefix(n.cfg.Prefix, nd.Index))}
	if !n.cfg.Host {
		if l, err := n.snl.LinkByName(portName(nd.Index)); err == nil {
			errs = append(errs, n.snl.LinkDel(l))
		}
		errs = append(errs, netns.Delete(n.cfg.nsName(nd.Name)), n.machineRoutes())
	}
	return errors.Join(errs...)
}

// ReleaseNode gives up the handles on a node and leaves it running.
func (n *Network) ReleaseNode(nd *Node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.nodes, nd.Index)
	nd.nl.Close()
	nd.NS.Close()
}

// SetCable plugs the node's cable in (up) or out; the node stays as it is and
// sees its carrier go. It fails in host mode.
func (nd *Node) SetCable(up bool) error {
	if nd.net.cfg.Host {
		return errors.New("the machine's own cable is not Fairway's to pull")
	}
	l, err := nd.net.snl.LinkByName(portName(nd.Index))
	if err != nil {
		return fmt.Errorf("cable of node %s: %w", nd.Name, err)
	}
	if up {
		return nd.net.snl.LinkSetUp(l)
	}
	return nd.net.snl.LinkSetDown(l)
}

// hostAddrs are the machine's addresses towards the world, one of each family.
func (n *Network) hostAddrs() []netip.Addr {
	var out []netip.Addr
	for _, p := range n.cfg.PodCIDRs {
		family := netlink.FAMILY_V4
		if p.Addr().Is6() {
			family = netlink.FAMILY_V6
		}
		var link netlink.Link
		if r := n.defaultRoute(family); r != nil {
			link, _ = n.mnl.LinkByIndex(r.LinkIndex)
		}
		addrs, err := n.mnl.AddrList(link, family)
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && a.Scope == unix.RT_SCOPE_UNIVERSE && !ip.IsLoopback() {
				out = append(out, ip.Unmap())
				break
			}
		}
	}
	return out
}

func linkUp(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	if l.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	return h.LinkSetUp(l)
}
