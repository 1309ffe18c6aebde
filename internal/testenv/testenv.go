// Package testenv gives tests hosts of their own: network namespaces joined by
// links, with addresses and routes, which vanish with the test.
//
// A test that needs the kernel calls RequireRoot first, then NewHost as often
// as it needs machines. Every namespace's name starts with "fw-t-" and carries
// the process number, so that tests running side by side do not collide and
// what a killed run left behind can be told apart and removed.
package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"fairway.dev/fairway/internal/netns"
)

// RequireRoot skips the test with a reason where it does not run as root, and
// fails it instead if FAIRWAY_REQUIRE_ROOT=1, so that CI cannot pass by
// skipping.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("FAIRWAY_REQUIRE_ROOT") == "1" {
		t.Fatal("needs root (network namespaces), and FAIRWAY_REQUIRE_ROOT=1 forbids to skip")
	}
	t.Skip("needs root: it makes network namespaces; run it with sudo")
}

var serial atomic.Uint32

// Name returns a name for a namespace that no other test uses.
func Name(hint string) string {
	return fmt.Sprintf("fw-t-%d-%d-%s", os.Getpid(), serial.Add(1), hint)
}

// Host is a machine of a test: a network namespace with loopback up and
// forwarding on for both families.
type Host struct {
	Name string
	NS   *netns.NS
	// NL speaks rtnetlink inside the namespace.
	NL *netlink.Handle
}

// NewHost makes a host that is removed when the test ends.
func NewHost(t testing.TB, hint string) *Host {
	t.Helper()
	name := Name(hint)
	ns, err := netns.Create(name)
	if err != nil {
		t.Fatalf("make test host: %v", err)
	}
	t.Cleanup(func() {
		ns.Close()
		if err := netns.Delete(name); err != nil {
			t.Errorf("remove test host: %v", err)
		}
	})
	h := &Host{Name: name, NS: ns}
	nl, err := newHandle(ns)
	if err != nil {
		t.Fatalf("make test host %s: %v", name, err)
	}
	t.Cleanup(nl.Close)
	h.NL = nl
	h.LinkUp(t, "lo")
	for _, key := range []string{
		"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding",
	} {
		h.Sysctl(t, key, "1")
	}
	// Duplicate address detection would hold every new address back for a second.
	h.Sysctl(t, "net/ipv6/conf/default/accept_dad", "0")
	h.Sysctl(t, "net/ipv6/conf/all/accept_dad", "0")
	return h
}

func newHandle(ns *netns.NS) (*netlink.Handle, error) {
	var nl *netlink.Handle
	err := ns.Do(func() (err error) {
		nl, err = netlink.NewHandle()
		return err
	})
	return nl, err
}

// Sysctl writes a value below /proc/sys; key is its path with slashes.
func (h *Host) Sysctl(t testing.TB, key, value string) {
	t.Helper()
	err := h.NS.Do(func() error { return os.WriteFile("/proc/sys/"+key, []byte(value), 0o644) })
	if err != nil {
		t.Fatalf("%s: sysctl %s=%s: %v", h.Name, key, value, err)
	}
}

// LinkUp brings a link up.
func (h *Host) LinkUp(t testing.TB, link string) {
	t.Helper()
	l, err := h.NL.LinkByName(link)
	if err == nil {
		err = h.NL.LinkSetUp(l)
	}
	if err != nil {
		t.Fatalf("%s: link %s up: %v", h.Name, link, err)
	}
}

// AddAddr gives a link an address, in CIDR form: "192.168.1.1/24".
func (h *Host) AddAddr(t testing.TB, link, cidr string) {
	t.Helper()
	p := netip.MustParsePrefix(cidr)
	l, err := h.NL.LinkByName(link)
	if err == nil {
		err = h.NL.AddrAdd(l, &netlink.Addr{IPNet: ipNet(p)})
	}
	if err != nil {
		t.Fatalf("%s: add %s to %s: %v", h.Name, cidr, link, err)
	}
}

// AddRoute adds a route to a destination ("default4" and "default6" for
// everything) by way of a gateway.
func (h *Host) AddRoute(t testing.TB, dst, gateway string) {
	t.Helper()
	switch dst {
	case "default4":
		dst = "0.0.0.0/0"
	case "default6":
		dst = "::/0"
	}
	r := netlink.Route{Dst: ipNet(netip.MustParsePrefix(dst)), Gw: net.ParseIP(gateway)}
	if err := h.NL.RouteAdd(&r); err != nil {
		t.Fatalf("%s: add route to %s via %s: %v", h.Name, dst, gateway, err)
	}
}

// Connect lays a cable between two hosts: a veth pair, both ends up, the end
// in h named linkA and the one in peer named linkB.
func (h *Host) Connect(t testing.TB, linkA string, peer *Host, linkB string) {
	t.Helper()
	la := netlink.NewLinkAttrs()
	la.Name = linkA
	veth := &netlink.Veth{LinkAttrs: la, PeerName: linkB, PeerNamespace: netlink.NsFd(peer.NS.Fd())}
	if err := h.NL.LinkAdd(veth); err != nil {
		t.Fatalf("connect %s/%s with %s/%s: %v", h.Name, linkA, peer.Name, linkB, err)
	}
	h.LinkUp(t, linkA)
	peer.LinkUp(t, linkB)
}

// AddBridge makes a bridge, up, with the links as its ports.
func (h *Host) AddBridge(t testing.TB, name string, ports ...string) {
	t.Helper()
	la := netlink.NewLinkAttrs()
	la.Name = name
	br := &netlink.Bridge{LinkAttrs: la}
	if err := h.NL.LinkAdd(br); err != nil {
		t.Fatalf("%s: make bridge %s: %v", h.Name, name, err)
	}
	for _, p := range ports {
		h.AddPort(t, name, p)
	}
	h.LinkUp(t, name)
}

// AddPort makes a link a port of a bridge.
func (h *Host) AddPort(t testing.TB, bridge, port string) {
	t.Helper()
	br, err := h.NL.LinkByName(bridge)
	if err == nil {
		var l netlink.Link
		if l, err = h.NL.LinkByName(port); err == nil {
			err = h.NL.LinkSetMaster(l, br)
		}
	}
	if err != nil {
		t.Fatalf("%s: add %s to bridge %s: %v", h.Name, port, bridge, err)
	}
}

// Dial connects from the host, waiting at most timeout.
func (h *Host) Dial(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return h.NS.DialContext(ctx, network, address)
}

// Listen announces on a TCP address of the host until the test ends.
func (h *Host) Listen(t testing.TB, network, address string) net.Listener {
	t.Helper()
	l, err := whenUsable(func() (net.Listener, error) { return h.NS.Listen(context.Background(), network, address) })
	if err != nil {
		t.Fatalf("%s: listen on %s: %v", h.Name, address, err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// ListenPacket announces on a UDP address of the host until the test ends.
func (h *Host) ListenPacket(t testing.TB, network, address string) net.PacketConn {
	t.Helper()
	c, err := whenUsable(func() (net.PacketConn, error) { return h.NS.ListenPacket(context.Background(), network, address) })
	if err != nil {
		t.Fatalf("%s: listen on %s: %v", h.Name, address, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// whenUsable tries again for a while if the address is not there: an IPv6
// address may be used a moment after its link has come up.
func whenUsable[T any](listen func() (T, error)) (T, error) {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		l, err := listen()
		if !errors.Is(err, syscall.EADDRNOTAVAIL) || time.Now().After(deadline) {
			return l, err
		}
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{
		IP:   p.Addr().AsSlice(),
		Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}
}
