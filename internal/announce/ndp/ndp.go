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
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	wire "github.com/mdlayher/ndp"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/netns"
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

// onlySolicitations lets the kernel wake us for neighbour solicitations alone:
// next header ICMPv6 and type 135.
var onlySolicitations = []bpf.Instruction{
	bpf.LoadAbsolute{Off: ethernetLen + 6, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: icmpv6, SkipFalse: 3},
	bpf.LoadAbsolute{Off: ethernetLen + ipv6Len, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: 135, SkipFalse: 1},
	bpf.RetConstant{Val: 2048},
	bpf.RetConstant{Val: 0},
}

// Responder answers on one link. It is safe for concurrent use.
type Responder struct {
	conn   *packet.Conn
	ns     *netns.NS
	link   *net.Interface
	logger *slog.Logger
	done   chan struct{}

	mu     sync.RWMutex
	mine   map[netip.Addr]struct{}
	groups groups
}

// Open starts answering on a link of a network namespace (nil: this one), for
// no address yet. It needs CAP_NET_RAW. The responder stops by itself when the
// link is gone; Close it nevertheless.
func Open(ns *netns.NS, link *net.Interface, logger *slog.Logger) (*Responder, error) {
	if len(link.HardwareAddr) != 6 {
		return nil, fmt.Errorf("ndp on %s: the link has no Ethernet address", link.Name)
	}
	filter, err := bpf.Assemble(onlySolicitations)
	if err != nil {
		return nil, err
	}
	r := &Responder{ns: ns, link: link, logger: logger.With("link", link.Name), done: make(chan struct{}), mine: map[netip.Addr]struct{}{}}
	err = r.inside(func() (err error) {
		r.conn, err = packet.Listen(link, packet.Raw, unix.ETH_P_IPV6, &packet.Config{Filter: filter})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ndp on %s: %w", link.Name, err)
	}
	go r.serve()
	return r, nil
}

func (r *Responder) inside(f func() error) error {
	if r.ns == nil {
		return f()
	}
	return r.ns.Do(f)
}

// Claim has solicitations for an IPv6 address answered from now on.
func (r *Responder) Claim(a netip.Addr) error {
	if !a.Is6() || a.Is4In6() {
		return fmt.Errorf("ndp: %s is no IPv6 address", a)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.mine[a]; ok {
		return nil
	}
	r.mine[a] = struct{}{}
	group, err := wire.SolicitedNodeMulticast(a)
	if err == nil {
		err = r.groups.join(r, group)
	}
	if err != nil {
		return fmt.Errorf("ndp: join the multicast group for %s on %s: %w", a, r.link.Name, err)
	}
	return nil
}

// Release stops answering for an address.
func (r *Responder) Release(a netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.mine[a]; !ok {
		return
	}
	delete(r.mine, a)
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
	return r.send(b)
}

// Close stops answering.
func (r *Responder) Close() error {
	err := r.conn.Close()
	<-r.done
	r.mu.Lock()
	defer r.mu.Unlock()
	r.groups.close()
	return err
}

func (r *Responder) serve() {
	defer close(r.done)
	buf := make([]byte, 2048)
	for {
		n, _, err := r.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if errors.Is(err, unix.ENETDOWN) {
				continue // reported once; the socket works again with the link
			}
			r.logger.Debug("ndp: read", "err", err)
			return
		}
		answer, err := r.answer(buf[:n])
		if answer != nil {
			err = r.send(answer)
		}
		if err != nil {
			r.logger.Debug("ndp: answer", "err", err)
		}
	}
}

// answer is the advertisement for a frame, or nil.
func (r *Responder) answer(b []byte) ([]byte, error) {
	if len(b) < ethernetLen+ipv6Len+24 {
		return nil, nil
	}
	ip := b[ethernetLen:]
	length := int(binary.BigEndian.Uint16(ip[4:]))
	if ip[0]>>4 != 6 || ip[6] != icmpv6 || ip[7] != hopLimit || len(ip) < ipv6Len+length {
		return nil, nil
	}
	source, _ := netip.AddrFromSlice(ip[8:24])
	m, err := wire.ParseMessage(ip[ipv6Len : ipv6Len+length])
	if err != nil {
		return nil, err
	}
	ns, ok := m.(*wire.NeighborSolicitation)
	if !ok {
		return nil, nil
	}
	r.mu.RLock()
	_, mine := r.mine[ns.TargetAddress]
	r.mu.RUnlock()
	if !mine {
		return nil, nil
	}
	if source.IsUnspecified() {
		// Somebody checks whether the address is free (RFC 4862): it is not.
		return r.advertisement(ns.TargetAddress, allNodes, allNodesMAC, false)
	}
	return r.advertisement(ns.TargetAddress, source, net.HardwareAddr(b[6:12]), true)
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

func (r *Responder) send(b []byte) error {
	_, err := r.conn.WriteTo(b, &packet.Addr{HardwareAddr: net.HardwareAddr(b[:6])})
	return err
}

// groupsPerSocket keeps each socket's memberships below the kernel's
// net.core.optmem_max.
const groupsPerSocket = 200

// groups are the multicast groups joined on a link. Addresses with the same
// last 24 bits share one.
type groups struct {
	sockets []*groupSocket
	joined  map[netip.Addr]*membership
}

type groupSocket struct {
	conn net.PacketConn
	n    int
}

type membership struct {
	socket *groupSocket
	refs   int
}

func (g *groups) join(r *Responder, group netip.Addr) error {
	if m := g.joined[group]; m != nil {
		m.refs++
		return nil
	}
	var socket *groupSocket
	for _, s := range g.sockets {
		if s.n < groupsPerSocket {
			socket = s
		}
	}
	if socket == nil {
		socket = &groupSocket{}
		err := r.inside(func() (err error) {
			// Nothing is ever sent to or read from it: a port of its own choice,
			// bound to loopback, only carries the memberships.
			socket.conn, err = net.ListenPacket("udp6", "[::1]:0")
			if err != nil {
				socket.conn, err = net.ListenPacket("udp6", "[::]:0")
			}
			return err
		})
		if err != nil {
			return err
		}
		g.sockets = append(g.sockets, socket)
	}
	err := ipv6.NewPacketConn(socket.conn).JoinGroup(r.link, &net.UDPAddr{IP: group.AsSlice()})
	if err != nil {
		return err
	}
	socket.n++
	if g.joined == nil {
		g.joined = map[netip.Addr]*membership{}
	}
	g.joined[group] = &membership{socket: socket, refs: 1}
	return nil
}

func (g *groups) leave(r *Responder, group netip.Addr) {
	m := g.joined[group]
	if m == nil {
		return
	}
	if m.refs--; m.refs > 0 {
		return
	}
	delete(g.joined, group)
	m.socket.n--
	if err := ipv6.NewPacketConn(m.socket.conn).LeaveGroup(r.link, &net.UDPAddr{IP: group.AsSlice()}); err != nil {
		r.logger.Debug("ndp: leave multicast group", "group", group, "err", err)
	}
}

func (g *groups) close() {
	for _, s := range g.sockets {
		s.conn.Close()
	}
	g.sockets, g.joined = nil, nil
}
