package standalone

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// requireRoot is the first thing every command that changes the machine asks.
func requireRoot(command string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return fmt.Errorf("needs root, because nodes and Pods are network namespaces: run `sudo fairway %s`", command)
}

// checkPortFree says so if somebody listens on the API port already.
func checkPortFree(addr netip.Addr, port int) error {
	ap := netip.AddrPortFrom(addr, uint16(port))
	l, err := net.Listen("tcp", ap.String())
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("--api-port: port %d is taken by another program; choose another, such as --api-port %d", port, port+1000)
	}
	if err != nil {
		return fmt.Errorf("--api-port: %w", err)
	}
	return l.Close()
}

// checkRanges refuses ranges that the machine already routes somewhere, except
// over the instance's own bridge (left behind by a run that was killed).
func checkRanges(n Network, bridge string) error {
	own := -1
	if l, err := netlink.LinkByName(bridge); err == nil {
		own = l.Attrs().Index
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("read the machine's routes: %w", err)
	}
	for _, group := range []struct {
		flag     string
		prefixes []netip.Prefix
	}{{"node-cidr", n.Nodes}, {"pod-cidr", n.Pods}, {"service-cidr", n.Services}} {
		for _, p := range group.prefixes {
			for _, r := range routes {
				dst, ok := routeDst(r)
				if !ok || r.LinkIndex == own || !dst.Overlaps(p) {
					continue
				}
				return fmt.Errorf("--%s: %s overlaps %s, which this machine already routes over %s; choose a range that is free here",
					group.flag, p, dst, linkName(r.LinkIndex))
			}
		}
	}
	return nil
}

// routeDst is a route's destination, unless it is a default route, a multicast
// or link-local one.
func routeDst(r netlink.Route) (netip.Prefix, bool) {
	if r.Dst == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(r.Dst.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	if r.Dst.IP.To4() != nil {
		addr = addr.Unmap()
	}
	ones, _ := r.Dst.Mask.Size()
	p := netip.PrefixFrom(addr, ones)
	if ones == 0 || addr.IsMulticast() || addr.IsLinkLocalUnicast() {
		return netip.Prefix{}, false
	}
	return p, true
}

func linkName(index int) string {
	l, err := netlink.LinkByIndex(index)
	if err != nil {
		return fmt.Sprintf("link %d", index)
	}
	return l.Attrs().Name
}
