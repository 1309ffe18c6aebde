package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/netns"
)

// Pod is a Pod's network: a namespace with loopback, eth0 and one address of
// each family.
type Pod struct {
	NSName string       `json:"nsName"` // of the namespace, as in /run/netns
	Addrs  []netip.Addr `json:"addrs"`

	slot int
}

func podPrefix(prefix string, node int) string {
	return prefix + "-p-" + strconv.Itoa(node) + "-"
}

// link is the name of the node's end of the Pod's cable: unlike any other of
// this node, and in host mode of this prefix.
func (nd *Node) link(slot int) string {
	if nd.net.cfg.Host {
		return nd.net.cfg.Prefix + "-" + strconv.FormatInt(int64(slot), 36)
	}
	return "pod" + strconv.Itoa(slot)
}

// AddPod makes a Pod's namespace and connects it; from is the path of a
// namespace that somebody else has made (a container runtime), or empty.
// Both ends are entered as neighbours of each other, so the first packet
// already flies without asking.
func (nd *Node) AddPod(from string) (_ *Pod, err error) {
	slot, addrs, err := nd.ipam.allocate()
	if err != nil {
		return nil, err
	}
	p := &Pod{NSName: podPrefix(nd.net.cfg.Prefix, nd.Index) + strconv.Itoa(slot), Addrs: addrs, slot: slot}
	defer func() {
		if err != nil {
			nd.RemovePod(p) //nolint:errcheck // the first error says more
			err = fmt.Errorf("connect Pod %v: %w", addrs, err)
		}
	}()
	if err := netns.Delete(p.NSName); err != nil {
		return nil, err
	}
	var ns *netns.NS
	if from == "" {
		ns, err = netns.Create(p.NSName)
	} else {
		ns, err = netns.Bind(p.NSName, from)
	}
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	var pnl *netlink.Handle
	if err := ns.Do(func() (err error) {
		if err := podSysctls(); err != nil {
			return err
		}
		pnl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	}); err != nil {
		return nil, err
	}
	defer pnl.Close()

	name := nd.link(slot)
	if l, err := nd.nl.LinkByName(name); err == nil {
		if err := nd.nl.LinkDel(l); err != nil { // of a Pod whose namespace is not gone yet
			return nil, err
		}
	}
	la := netlink.NewLinkAttrs()
	la.Name, la.MTU, la.HardwareAddr = name, nd.net.mtu, routerMAC
	veth := &netlink.Veth{LinkAttrs: la, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd()),
		PeerHardwareAddr: macOf(addrs[0]), PeerMTU: uint32(nd.net.mtu)}
	if err := nd.nl.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("make link %s: %w", name, err)
	}
	outer, err := nd.nl.LinkByName(name)
	if err != nil {
		return nil, err
	}
	if err := allowIPv6(nd.NS, name); err != nil {
		return nil, err
	}
	nd.nl.LinkSetIP6AddrGenMode(outer, 1) //nolint:errcheck // only saves chatter
	if err := nd.nl.LinkSetUp(outer); err != nil {
		return nil, err
	}
	eth0, err := pnl.LinkByName("eth0")
	if err != nil {
		return nil, err
	}
	if err := linkUp(pnl, "lo"); err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if err := addAddr(pnl, eth0, netip.PrefixFrom(a, a.BitLen())); err != nil {
			return nil, fmt.Errorf("address %v: %w", a, err)
		}
	}
	if err := pnl.LinkSetUp(eth0); err != nil {
		return nil, err
	}
	for _, a := range addrs {
		gw := router4
		if a.Is6() {
			gw = router6
		}
		in, out := eth0.Attrs().Index, outer.Attrs().Index
		for _, err := range []error{
			pnl.NeighSet(&netlink.Neigh{LinkIndex: in, IP: gw.AsSlice(), HardwareAddr: routerMAC, State: unix.NUD_PERMANENT}),
			pnl.RouteReplace(&netlink.Route{LinkIndex: in, Dst: ipNet(anyOf(a)), Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}),
			nd.nl.NeighSet(&netlink.Neigh{LinkIndex: out, IP: a.AsSlice(), HardwareAddr: macOf(addrs[0]), State: unix.NUD_PERMANENT}),
			nd.nl.RouteReplace(&netlink.Route{LinkIndex: out, Dst: single(a), Scope: unix.RT_SCOPE_LINK}),
		} {
			if err != nil {
				return nil, fmt.Errorf("routes of %v: %w", a, err)
			}
		}
	}
	return p, nil
}

// podSysctls are what container runtimes set: any user may open low ports and
// send pings.
func podSysctls() error {
	for _, kv := range [][2]string{
		{"net/ipv4/ip_unprivileged_port_start", "0"},
		{"net/ipv4/ping_group_range", "0 2147483647"},
		{"net/ipv6/conf/default/accept_ra", "0"},
		{"net/ipv6/conf/default/accept_dad", "0"},
		{"net/ipv6/conf/default/addr_gen_mode", "1"},
		{"net/ipv6/conf/all/disable_ipv6", "0"}, // which a namespace may have from the machine
	} {
		if err := writeSysctl(kv[0], kv[1]); err != nil && !isNotExist(err) {
			return err
		}
	}
	return nil
}

// AdoptPod takes over the network of a Pod that an earlier process has made.
// It fails if any of it is missing; the caller then makes a new one.
func (nd *Node) AdoptPod(p Pod) (*Pod, error) {
	ns, err := netns.Open(p.NSName)
	if err != nil {
		return nil, err
	}
	ns.Close()
	slot, ok := nd.ipam.claim(p.Addrs)
	if !ok {
		return nil, fmt.Errorf("addresses %v of %s: not free in %v", p.Addrs, p.NSName, nd.PodCIDRs)
	}
	p.slot = slot
	if _, err := nd.nl.LinkByName(nd.link(slot)); err != nil {
		nd.ipam.release(slot)
		return nil, fmt.Errorf("link %s: %w", nd.link(slot), err)
	}
	return &p, nil
}

// RemovePod takes the Pod's network away. The kernel takes the namespace apart
// once the last process has left it; the address goes unreachable at once.
func (nd *Node) RemovePod(p *Pod) error {
	var errs []error
	for _, a := range p.Addrs {
		nd.nl.RouteDel(&netlink.Route{Dst: single(a), Scope: unix.RT_SCOPE_LINK}) //nolint:errcheck // may be gone already
	}
	if nd.net.cfg.Host {
		if l, err := nd.nl.LinkByName(nd.link(p.slot)); err == nil {
			errs = append(errs, nd.nl.LinkDel(l))
		}
	}
	errs = append(errs, netns.Delete(p.NSName))
	nd.ipam.release(p.slot)
	return errors.Join(errs...)
}

// OpenPod opens the namespace of a Pod; the caller closes it.
func (p *Pod) OpenPod() (*netns.NS, error) { return netns.Open(p.NSName) }

// Prune removes the namespaces of Pods of this node that keep does not name.
func (nd *Node) Prune(keep map[string]bool) error {
	names, err := netns.List(podPrefix(nd.net.cfg.Prefix, nd.Index))
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if !keep[name] {
			errs = append(errs, netns.Delete(name))
		}
	}
	return errors.Join(errs...)
}

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
