package announce

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/netns"
)

// link is a network interface that addresses can be announced on.
type link struct {
	iface    net.Interface
	enslaved bool // a port of a bridge or bond, which speaks for it
	prefixes []netip.Prefix
}

// linksOf lists the Ethernet-like links of a namespace (nil: this one) that are
// up and have a carrier.
func linksOf(ns *netns.NS) ([]link, error) {
	var out []link
	list := func() error {
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		all, err := h.LinkList()
		if err != nil {
			return err
		}
		addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		byIndex := map[int]netlink.Link{}
		for _, l := range all {
			byIndex[l.Attrs().Index] = l
		}
		for _, l := range all {
			a := l.Attrs()
			ok, port := useful(a, byIndex[a.MasterIndex])
			if !ok {
				continue
			}
			x := link{
				iface:    net.Interface{Index: a.Index, MTU: a.MTU, Name: a.Name, HardwareAddr: a.HardwareAddr, Flags: a.Flags},
				enslaved: port,
			}
			for _, ad := range addrs {
				if ad.LinkIndex != a.Index || ad.IPNet == nil {
					continue
				}
				if ip, ok := netip.AddrFromSlice(ad.IP); ok {
					bits, _ := ad.Mask.Size()
					x.prefixes = append(x.prefixes, netip.PrefixFrom(ip.Unmap(), bits))
				}
			}
			out = append(out, x)
		}
		return nil
	}
	var err error
	if ns != nil {
		err = ns.Do(list)
	} else {
		err = list()
	}
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return out, nil
}

// useful says whether addresses can be announced on a link: it is like
// Ethernet, up and has a carrier, and knows neighbours (a dummy and a tunnel do
// not). port says that its master (nil if there is none) is a bridge or a bond,
// which answers for it; a VRF leaves its members what they are.
func useful(a *netlink.LinkAttrs, master netlink.Link) (ok, port bool) {
	carrier := a.Flags&net.FlagRunning != 0 || a.OperState == netlink.OperUnknown
	ok = a.Flags&net.FlagUp != 0 && carrier && a.Flags&net.FlagLoopback == 0 && a.Flags&net.FlagBroadcast != 0 &&
		a.RawFlags&unix.IFF_NOARP == 0 && len(a.HardwareAddr) == 6
	return ok, a.MasterIndex != 0 && (master == nil || master.Type() != "vrf")
}

// choose picks the links to announce an address on: those whose names match a
// pattern; without patterns those on whose subnet it is, or else those that
// carry one of the node's addresses.
func choose(links []link, patterns []string, addr netip.Addr, node []netip.Addr) []link {
	pick := func(ok func(link) bool) (out []link) {
		for _, l := range links {
			if ok(l) {
				out = append(out, l)
			}
		}
		return out
	}
	if len(patterns) > 0 {
		return pick(func(l link) bool {
			return slices.ContainsFunc(patterns, func(p string) bool { ok, _ := path.Match(p, l.iface.Name); return ok })
		})
	}
	onSubnet := pick(func(l link) bool {
		return !l.enslaved && slices.ContainsFunc(l.prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
	})
	if len(onSubnet) > 0 {
		return onSubnet
	}
	return pick(func(l link) bool {
		return !l.enslaved && slices.ContainsFunc(l.prefixes, func(p netip.Prefix) bool { return slices.Contains(node, p.Addr()) })
	})
}

// watchLinks signals on the channel when links or addresses of the namespace
// change, until done is closed. The channel is closed if the watch breaks off.
func watchLinks(ns *netns.NS, done <-chan struct{}) (<-chan struct{}, error) {
	links, addrs := make(chan netlink.LinkUpdate), make(chan netlink.AddrUpdate)
	subscribe := func() error {
		// The sockets are opened on this thread and stay in its namespace.
		if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{}); err != nil {
			return err
		}
		return netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{})
	}
	var err error
	if ns != nil {
		err = ns.Do(subscribe)
	} else {
		err = subscribe()
	}
	if err != nil {
		return nil, fmt.Errorf("watch links: %w", err)
	}
	out := make(chan struct{}, 1)
	go func() {
		defer close(out)
		for ok := true; ok; {
			select {
			case _, ok = <-links:
			case _, ok = <-addrs:
			}
			select {
			case out <- struct{}{}:
			default:
			}
		}
		// Drain the other until done ends it too.
		go func() {
			for range links {
			}
		}()
		go func() {
			for range addrs {
			}
		}()
	}()
	return out, nil
}
