package ndp

import (
	"net"
	"net/netip"

	"golang.org/x/net/ipv6"
)

// groupsPerSocket keeps each socket's memberships below the kernel's
// net.core.optmem_max.
const groupsPerSocket = 200

// groups are the multicast groups joined on a link. Addresses with the same
// last 24 bits share one.
type groups struct {
	sockets []*groupSocket
	joined  map[netip.Addr]*membership
	warned  bool
}

type groupSocket struct {
	conn net.PacketConn
	n    int
}

type membership struct {
	socket *groupSocket // nil: only the link lets the group through
	refs   int
}

// ethernet is the Ethernet address of a multicast group (RFC 2464 section 7).
func ethernet(group netip.Addr) net.HardwareAddr {
	b := group.As16()
	return net.HardwareAddr{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// join has solicitations for a group's addresses come in. Where the kernel
// cannot join it (IPv6 is off on the link, or it has reached a limit) the link
// at least lets it through; switches that filter multicast learn nothing then.
func (g *groups) join(r *Responder, group netip.Addr) {
	if m := g.joined[group]; m != nil {
		m.refs++
		return
	}
	if g.joined == nil {
		g.joined = map[netip.Addr]*membership{}
	}
	socket, err := g.subscribe(r, group)
	g.joined[group] = &membership{socket: socket, refs: 1}
	if err == nil {
		return
	}
	if !g.warned {
		g.warned = true
		r.config.Logger.Warn("cannot join the multicast groups of addresses; switches that filter multicast may hold solicitations back", "group", group, "err", err)
	}
	if err := r.socket.Multicast(ethernet(group), true); err != nil {
		r.config.Logger.Warn("cannot let a multicast group through", "group", group, "err", err)
	}
}

// subscribe joins a group as any program would.
func (g *groups) subscribe(r *Responder, group netip.Addr) (*groupSocket, error) {
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
			return nil, err
		}
		g.sockets = append(g.sockets, socket)
	}
	if err := ipv6.NewPacketConn(socket.conn).JoinGroup(r.link, &net.UDPAddr{IP: group.AsSlice()}); err != nil {
		return nil, err
	}
	socket.n++
	return socket, nil
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
	if m.socket == nil {
		if err := r.socket.Multicast(ethernet(group), false); err != nil {
			r.config.Logger.Debug("let a multicast group through no longer", "group", group, "err", err)
		}
		return
	}
	m.socket.n--
	if err := ipv6.NewPacketConn(m.socket.conn).LeaveGroup(r.link, &net.UDPAddr{IP: group.AsSlice()}); err != nil {
		r.config.Logger.Debug("leave multicast group", "group", group, "err", err)
	}
}

func (g *groups) close() {
	for _, s := range g.sockets {
		s.conn.Close()
	}
	g.sockets, g.joined = nil, nil
}
