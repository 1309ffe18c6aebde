package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"fairway.dev/fairway/internal/netns"
)

// Config says what network to make.
type Config struct {
	// Prefix starts the name of everything made here; at most 9 bytes, because
	// a link's name has 15 and node ports are named "<prefix>-nNNN".
	Prefix string
	// NodeCIDRs is the LAN, one prefix per family: the machine takes the first
	// address, node i the address 10+i.
	NodeCIDRs []netip.Prefix
	// PodCIDRs is what all Pods share, one prefix per family; each node has the
	// i-th /24 or /64 of it.
	PodCIDRs []netip.Prefix
	// MachineRoutes are destinations that the machine reaches through its nodes,
	// such as the Service CIDRs: one equal-cost route over all nodes with power.
	MachineRoutes []netip.Prefix
	// Host makes the machine itself the only node: no switch, no link of its own.
	Host bool
	// StateDir keeps what must outlive the process: sysctls as they were, the
	// next free Pod addresses. Made if missing.
	StateDir string
	// Machine is the machine's namespace; nil for the calling thread's.
	Machine *netns.NS
	Logger  *slog.Logger
}

func (c *Config) check() error {
	if c.Prefix == "" || len(c.Prefix) > 9 {
		return fmt.Errorf("network prefix %q: must have 1 to 9 bytes, because links are named after it", c.Prefix)
	}
	if c.StateDir == "" {
		return errors.New("network state directory: must be given")
	}
	if len(c.PodCIDRs) == 0 || len(c.PodCIDRs) > 2 {
		return fmt.Errorf("Pod CIDRs %v: must be one, or one of each family", c.PodCIDRs)
	}
	if !c.Host {
		if len(c.NodeCIDRs) != len(c.PodCIDRs) {
			return fmt.Errorf("node CIDRs %v and Pod CIDRs %v: must be of the same families", c.NodeCIDRs, c.PodCIDRs)
		}
		for i := range c.NodeCIDRs {
			if c.NodeCIDRs[i].Addr().Is4() != c.PodCIDRs[i].Addr().Is4() {
				return fmt.Errorf("node CIDR %v and Pod CIDR %v: must be of the same family, in the same order", c.NodeCIDRs[i], c.PodCIDRs[i])
			}
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// nodeAddrOffset is where node addresses begin in the LAN: node 1 is .11.
const nodeAddrOffset = 10

// NodePodCIDRs returns the Pod CIDRs of node index (from 1): the index-th /24
// or /64, or the whole prefix in host mode.
func (c *Config) NodePodCIDRs(index int) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, p := range c.PodCIDRs {
		if c.Host {
			out = append(out, p.Masked())
			continue
		}
		bits := 24
		if p.Addr().Is6() {
			bits = 64
		}
		if bits < p.Bits() || index >= 1<<(bits-p.Bits()) {
			return nil, fmt.Errorf("Pod CIDR %v: has no room for a /%d for node %d; give a shorter prefix", p, bits, index)
		}
		out = append(out, netip.PrefixFrom(nthSubnet(p, bits, index), bits))
	}
	return out, nil
}

// NodeAddrs returns the LAN addresses of node index (from 1) with their prefix length.
func (c *Config) NodeAddrs(index int) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, p := range c.NodeCIDRs {
		a := nthAddr(p, uint64(nodeAddrOffset+index))
		if !p.Contains(a) {
			return nil, fmt.Errorf("node CIDR %v: has no room for node %d; give a shorter prefix", p, index)
		}
		out = append(out, netip.PrefixFrom(a, p.Bits()))
	}
	return out, nil
}

// MachineAddrs returns the machine's addresses on the LAN.
func (c *Config) MachineAddrs() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range c.NodeCIDRs {
		out = append(out, netip.PrefixFrom(nthAddr(p, 1), p.Bits()))
	}
	return out
}

func nthAddr(p netip.Prefix, n uint64) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	if len(b) == 4 {
		binary.BigEndian.PutUint32(b, binary.BigEndian.Uint32(b)+uint32(n))
	} else {
		binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+n)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// nthSubnet returns the first address of the n-th subnet of the given length.
func nthSubnet(p netip.Prefix, bits, n int) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	if len(b) == 4 {
		binary.BigEndian.PutUint32(b, binary.BigEndian.Uint32(b)+uint32(n)<<(32-bits))
	} else {
		// bits is 64: subnets are counted in the upper half.
		binary.BigEndian.PutUint64(b, binary.BigEndian.Uint64(b)+uint64(n)<<(64-bits))
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// macOf derives a hardware address from an IP address, so that it is known
// before anybody asks and neighbours can be entered by hand.
func macOf(a netip.Addr) net.HardwareAddr {
	b := a.AsSlice()
	return append(net.HardwareAddr{0x0a, 0x58}, b[len(b)-4:]...)
}

// routerMAC is the node's end of every Pod's veth; each is a link of two.
var routerMAC = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}

// Router addresses as every Pod sees them, on a link that has nobody else.
var (
	router4 = netip.MustParseAddr("169.254.1.1")
	router6 = netip.MustParseAddr("fe80::1")
)

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func single(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }
