// Package ndp answers neighbour solicitations (RFC 4861) on one link for IPv6
// addresses that no interface has, and announces them by unsolicited neighbour
// advertisements.
//
// In go the addresses to answer for; out go frames. It decides nothing: who
// answers for what is the caller's business. It joins the solicited-node
// multicast group of each address, so that network cards and switches which
// filter multicast let the solicitations through.
package ndp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"

	wire "github.com/mdlayher/ndp"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/announce/raw"
)

const (
	ethernetLen = 14
	ipv6Len     = 40
	icmpv6      = 58
	hopLimit    = 255 // RFC 4861 section 7.1.1: anything less came through a router
)

var (
	allNodes    = netip.MustParseAddr("ff02::1")
	allNodesMAC = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
)

// filter lets neighbour solicitations and advertisements through: next header
// ICMPv6 and type 135 or 136.
var filter = []bpf.Instruction{
	bpf.LoadAbsolute{Off: ethernetLen + 6, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: icmpv6, SkipFalse: 4},
	bpf.LoadAbsolute{Off: ethernetLen + ipv6Len, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: 135, SkipTrue: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: 136, SkipFalse: 1},
	bpf.RetConstant{Val: 2048},
	bpf.RetConstant{Val: 0},
}

// Responder answers on one link. It is safe for concurrent use.
type Responder struct {
	raw.Table
	config raw.Config
	link   *net.Interface
	socket *raw.Socket

	mu     sync.Mutex
	groups groups
}

// Open starts answering on a link, for no address yet. It needs CAP_NET_RAW.
// The responder stops by itself when the link is gone; Close it nevertheless.
func Open(c raw.Config) (*Responder, error) {
	c.Logger = c.Logger.With("link", c.Link.Name, "protocol", "ndp")
	r := &Responder{config: c, link: c.Link}
	socket, err := raw.Listen(c, unix.ETH_P_IPV6, filter, r.handle)
	if err != nil {
		return nil, fmt.Errorf("ndp on %s: %w", c.Link.Name, err)
	}
	r.socket = socket
	return r, nil
}

func (r *Responder) inside(f func() error) error {
	if r.config.NetNS == nil {
		return f()
	}
	return r.config.NetNS.Do(f)
}

// Claim has solicitations for an IPv6 address answered from now on.
func (r *Responder) Claim(a netip.Addr) error {
	if !a.Is6() || a.Is4In6() {
		return fmt.Errorf("ndp: %s is no IPv6 address", a)
	}
	group, err := wire.SolicitedNodeMulticast(a)
	if err != nil {
		return fmt.Errorf("ndp: %s: %w", a, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Add(a) {
		r.groups.join(r, group)
	}
	return nil
}

// Release stops answering for an address.
func (r *Responder) Release(a netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.Remove(a) {
		return
	}
	if group, err := wire.SolicitedNodeMulticast(a); err == nil {
		r.groups.leave(r, group)
	}
}

// Announce tells everybody on the link that the address is here, so that those
// who knew it elsewhere change their minds.
func (r *Responder) Announce(a netip.Addr) error {
	b, err := r.advertisement(a, allNodes, allNodesMAC, false)
	if err != nil {
		return err
	}
	if c := r.Find(a); c != nil {
		c.Announcements.Add(1)
	}
	return r.socket.Send(b)
}

// Close stops answering.
func (r *Responder) Close() error {
	err := r.socket.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.groups.close()
	return err
}

func (r *Responder) handle(s *raw.Socket, b []byte) {
	answer, c, err := r.answer(b)
	if answer != nil {
		err = s.Send(answer)
	}
	switch {
	case err != nil:
		r.config.Logger.Debug("answer", "err", err)
	case answer != nil:
		c.Responses.Add(1)
	}
}

// answer is the advertisement for a frame and whose counters count it, or nil.
func (r *Responder) answer(b []byte) ([]byte, *raw.Counters, error) {
	if len(b) < ethernetLen+ipv6Len+24 {
		return nil, nil, nil
	}
	ip := b[ethernetLen:]
	length := int(binary.BigEndian.Uint16(ip[4:]))
	if ip[0]>>4 != 6 || ip[6] != icmpv6 || ip[7] != hopLimit || len(ip) < ipv6Len+length {
		return nil, nil, nil
	}
	source, _ := netip.AddrFromSlice(ip[8:24])
	from := net.HardwareAddr(b[6:12])
	if bytes.Equal(from, r.link.HardwareAddr) {
		return nil, nil, nil // our own, come back
	}
	m, err := wire.ParseMessage(ip[ipv6Len : ipv6Len+length])
	if err != nil {
		return nil, nil, err
	}
	switch m := m.(type) {
	case *wire.NeighborAdvertisement:
		if r.Find(m.TargetAddress) != nil {
			r.config.Conflicting(m.TargetAddress, from)
		}
	case *wire.NeighborSolicitation:
		c := r.Find(m.TargetAddress)
		if c == nil {
			return nil, nil, nil
		}
		c.Requests.Add(1)
		to, mac, solicited := source, from, true
		if source.IsUnspecified() {
			// Somebody checks whether the address is free (RFC 4862): it is not.
			to, mac, solicited = allNodes, allNodesMAC, false
		}
		answer, err := r.advertisement(m.TargetAddress, to, mac, solicited)
		return answer, c, err
	}
	return nil, nil, nil
}

// advertisement is the frame that says that an address is here.
func (r *Responder) advertisement(a, to netip.Addr, mac net.HardwareAddr, solicited bool) ([]byte, error) {
	body, err := wire.MarshalMessageChecksum(&wire.NeighborAdvertisement{
		Solicited:     solicited,
		Override:      true,
		TargetAddress: a,
		Options:       []wire.Option{&wire.LinkLayerAddress{Direction: wire.Target, Addr: r.link.HardwareAddr}},
	}, a, to)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, ethernetLen+ipv6Len+len(body))
	b = append(b, mac...)
	b = append(b, r.link.HardwareAddr...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IPV6)
	b = append(b, 6<<4, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, icmpv6, hopLimit)
	b = append(b, a.AsSlice()...)
	b = append(b, to.AsSlice()...)
	return append(b, body...), nil
}
