package server

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/netns"
)

// receiveBuffer is asked for for each UDP socket, in bytes; the system may give less.
const receiveBuffer = 1 << 20

// in runs f in a network namespace, or here if there is none.
func in(ns *netns.NS, f func() error) error {
	if ns == nil {
		return f()
	}
	return ns.Do(f)
}

// listenUDP opens several sockets on one address. The kernel picks among them by the
// asker's address, so that what one asker sends in excess fills one socket's
// queue and leaves the others' alone.
func listenUDP(ctx context.Context, ns *netns.NS, addr netip.AddrPort, count int) ([]*net.UDPConn, error) {
	var conns []*net.UDPConn
	err := in(ns, func() error {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			return control(c, func(fd int) error {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
					return err
				}
				if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
					unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
				}
				if addr.Addr().IsUnspecified() {
					// To answer from the address that was asked.
					if addr.Addr().Is4() {
						return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
					}
					return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
				}
				return nil
			})
		}}
		for range count {
			c, err := lc.ListenPacket(ctx, "udp", addr.String())
			if err != nil {
				return err
			}
			conns = append(conns, c.(*net.UDPConn))
			// The first may have been given a port to share.
			addr = netip.AddrPortFrom(addr.Addr(), uint16(c.LocalAddr().(*net.UDPAddr).Port))
		}
		raw, err := conns[0].SyscallConn()
		if err != nil {
			return err
		}
		if count > 1 {
			// Without it the kernel picks by address and port: a flood from many ports is felt by all then.
			_ = control(raw, func(fd int) error { return spreadByAddress(fd, count) })
		}
		return nil
	})
	if err != nil {
		for _, c := range conns {
			c.Close()
		}
		return nil, fmt.Errorf("listen on UDP %v: %w", addr, err)
	}
	return conns, nil
}

func listenTCP(ctx context.Context, ns *netns.NS, addr netip.AddrPort) (net.Listener, error) {
	var l net.Listener
	err := in(ns, func() (err error) {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			return control(c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		}}
		l, err = lc.Listen(ctx, "tcp", addr.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on TCP %v: %w", addr, err)
	}
	return l, nil
}

func control(c syscall.RawConn, f func(fd int) error) error {
	var ferr error
	if err := c.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// spreadByAddress gives the sockets of a SO_REUSEPORT group a classic BPF
// program that picks one by the source address alone (socket(7),
// SO_ATTACH_REUSEPORT_CBPF; Documentation/networking/filter.rst for SKF_NET_OFF).
func spreadByAddress(fd, count int) error {
	const net = 0xfff00000 // SKF_NET_OFF: offsets count from the IP header
	ins := func(code uint16, jt, jf uint8, k uint32) unix.SockFilter {
		return unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k}
	}
	load := func(off uint32) unix.SockFilter { return ins(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, net+off) }
	tax := ins(unix.BPF_MISC|unix.BPF_TAX, 0, 0, 0)
	xor := ins(unix.BPF_ALU|unix.BPF_XOR|unix.BPF_X, 0, 0, 0)
	prog := []unix.SockFilter{
		ins(unix.BPF_LD|unix.BPF_B|unix.BPF_ABS, 0, 0, net), // version and header length
		ins(unix.BPF_ALU|unix.BPF_RSH|unix.BPF_K, 0, 0, 4),
		ins(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, 2, 4),
		load(12), // IPv4 source
		ins(unix.BPF_JMP|unix.BPF_JA, 0, 0, 10),
		load(8), tax, // IPv6 source
		load(12), xor, tax,
		load(16), xor, tax,
		load(20), xor,
		ins(unix.BPF_ALU|unix.BPF_MUL|unix.BPF_K, 0, 0, 0x9e3779b1),
		ins(unix.BPF_ALU|unix.BPF_RSH|unix.BPF_K, 0, 0, 16),
		ins(unix.BPF_ALU|unix.BPF_MOD|unix.BPF_K, 0, 0, uint32(count)),
		ins(unix.BPF_RET|unix.BPF_A, 0, 0, 0),
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
		&unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
}
