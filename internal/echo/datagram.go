package echo

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// listenUDP binds addr so that answers leave from the address the question
// was sent to, on hosts with several: the kernel tells each datagram's
// destination (IP_PKTINFO), and the answer names it as its source.
func listenUDP(addr string) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		e := c.Control(func(fd uintptr) {
			// An IPv6 socket also takes IPv4 (mapped) unless bound otherwise;
			// each option fails harmlessly on the other family's socket.
			err4 := syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_PKTINFO, 1)
			err6 := syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_RECVPKTINFO, 1)
			if err4 != nil && err6 != nil {
				err = fmt.Errorf("asking for destination addresses: %w", err4)
			}
		})
		if e != nil {
			return e
		}
		return err
	}}
	return lc.ListenPacket(context.Background(), "udp", addr)
}

// serveUDP answers until the socket closes. The answer is the usual line
// followed by the datagram's own bytes.
func (s *Server) serveUDP(pc net.PacketConn) error {
	c := pc.(*net.UDPConn)
	port := c.LocalAddr().(*net.UDPAddr).Port
	buf, oob := make([]byte, 64<<10), make([]byte, 256)
	for {
		n, oobn, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return err
		}
		payload := append([]byte(nil), buf[:n]...)
		local, control := destination(oob[:oobn])
		if !s.delayed() {
			s.echoUDP(c, payload, local, port, control, from)
			continue
		}
		go s.echoUDP(c, payload, local, port, control, from)
	}
}

// delayed says whether answering takes time, and so must not hold up the
// reader of the socket.
func (s *Server) delayed() bool { return s.opts.Delay > 0 }

func (s *Server) echoUDP(c *net.UDPConn, payload []byte, local netip.Addr, port int, control []byte, from netip.AddrPort) {
	if s.begin(context.Background(), 0) {
		return
	}
	address := netip.AddrPortFrom(local.Unmap(), uint16(port)).String()
	client := netip.AddrPortFrom(from.Addr().Unmap(), from.Port()).String()
	out := append(s.encode(s.answer("udp", address, client)), payload...)
	c.WriteMsgUDPAddrPort(out, control, from) // a lost answer is UDP's own business
	if s.opts.LogRequests {
		s.log.Info("request", "protocol", "udp", "client", client)
	}
}

// destination reads the address a datagram was sent to out of its control
// messages, and returns the control message that makes an answer leave from
// there (nil if the kernel told nothing).
func destination(oob []byte) (netip.Addr, []byte) {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}, nil
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == syscall.IPPROTO_IP && m.Header.Type == syscall.IP_PKTINFO && len(m.Data) >= 12:
			// struct in_pktinfo { int ifindex; in_addr spec_dst; in_addr addr; }
			return netip.AddrFrom4([4]byte(m.Data[8:12])), pktinfo4([4]byte(m.Data[4:8]))
		case m.Header.Level == syscall.IPPROTO_IPV6 && m.Header.Type == syscall.IPV6_PKTINFO && len(m.Data) >= 20:
			// struct in6_pktinfo { in6_addr addr; int ifindex; }
			// An IPv4 address arrives, and is accepted, in its mapped form.
			return netip.AddrFrom16([16]byte(m.Data[:16])), pktinfo6([16]byte(m.Data[:16]))
		}
	}
	return netip.Addr{}, nil
}
