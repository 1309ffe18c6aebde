// Package arp answers ARP requests (RFC 826) on one link for IPv4 addresses
// that no interface has, and announces them (RFC 5227).
//
// In go the addresses to answer for; out go frames. It decides nothing: who
// answers for what is the caller's business. The kernel's own neighbour tables
// and sysctls are not touched.
package arp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/netns"
)

// Operations of RFC 826.
const (
	opRequest = 1
	opReply   = 2
)

// frameLen is an Ethernet header and an ARP packet for IPv4 over Ethernet.
const frameLen = 14 + 28

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// onlyRequests lets the kernel wake us for ARP requests alone. Offset 20 is the
// operation, behind the Ethernet header.
var onlyRequests = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 20, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: opRequest, SkipFalse: 1},
	bpf.RetConstant{Val: frameLen},
	bpf.RetConstant{Val: 0},
}

// Responder answers on one link. It is safe for concurrent use.
type Responder struct {
	conn   *packet.Conn
	mac    net.HardwareAddr
	logger *slog.Logger
	done   chan struct{}

	mu   sync.RWMutex
	mine map[netip.Addr]struct{}
}

// Open starts answering on a link of a network namespace (nil: this one), for
// no address yet. It needs CAP_NET_RAW. The responder stops by itself when the
// link is gone; Close it nevertheless.
func Open(ns *netns.NS, link *net.Interface, logger *slog.Logger) (*Responder, error) {
	if len(link.HardwareAddr) != 6 {
		return nil, fmt.Errorf("arp on %s: the link has no Ethernet address", link.Name)
	}
	filter, err := bpf.Assemble(onlyRequests)
	if err != nil {
		return nil, err
	}
	r := &Responder{mac: link.HardwareAddr, logger: logger.With("link", link.Name), done: make(chan struct{}), mine: map[netip.Addr]struct{}{}}
	open := func() (err error) {
		r.conn, err = packet.Listen(link, packet.Raw, unix.ETH_P_ARP, &packet.Config{Filter: filter})
		return err
	}
	if ns != nil {
		err = ns.Do(open)
	} else {
		err = open()
	}
	if err != nil {
		return nil, fmt.Errorf("arp on %s: %w", link.Name, err)
	}
	go r.serve()
	return r, nil
}

// Claim has requests for an IPv4 address answered from now on.
func (r *Responder) Claim(a netip.Addr) error {
	if !a.Is4() {
		return fmt.Errorf("arp: %s is no IPv4 address", a)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mine[a] = struct{}{}
	return nil
}

// Release stops answering for an address.
func (r *Responder) Release(a netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.mine, a)
}

// Announce tells everybody on the link that the address is here, so that those
// who knew it elsewhere change their minds: once as a request and once as a
// reply, since systems differ in which of them they believe.
func (r *Responder) Announce(a netip.Addr) error {
	request := frame(broadcast, r.mac, opRequest, r.mac, a, make(net.HardwareAddr, 6), a)
	reply := frame(broadcast, r.mac, opReply, r.mac, a, broadcast, a)
	return errors.Join(r.send(request), r.send(reply))
}

// Close stops answering.
func (r *Responder) Close() error {
	err := r.conn.Close()
	<-r.done
	return err
}

func (r *Responder) serve() {
	defer close(r.done)
	buf := make([]byte, 128)
	for {
		n, _, err := r.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if errors.Is(err, unix.ENETDOWN) {
				continue // reported once; the socket works again with the link
			}
			r.logger.Debug("arp: read", "err", err)
			return
		}
		answer := r.answer(buf[:n])
		if answer == nil {
			continue
		}
		if err := r.send(answer); err != nil {
			r.logger.Debug("arp: answer", "err", err)
		}
	}
}

// answer is the reply to a frame, or nil.
func (r *Responder) answer(b []byte) []byte {
	if len(b) < frameLen {
		return nil
	}
	p := b[14:]
	// Ethernet (1), IPv4 (0x0800), with lengths 6 and 4.
	if binary.BigEndian.Uint16(p) != 1 || binary.BigEndian.Uint16(p[2:]) != 0x0800 || p[4] != 6 || p[5] != 4 ||
		binary.BigEndian.Uint16(p[6:]) != opRequest {
		return nil
	}
	hardware := net.HardwareAddr(p[8:14])
	sender, _ := netip.AddrFromSlice(p[14:18])
	target, _ := netip.AddrFromSlice(p[24:28])
	r.mu.RLock()
	_, mine := r.mine[target]
	r.mu.RUnlock()
	if !mine {
		return nil
	}
	if sender == target {
		r.logger.Warn("somebody else on the link announces an address that this node answers for", "address", target, "mac", hardware)
		return nil
	}
	return frame(hardware, r.mac, opReply, r.mac, target, hardware, sender)
}

func (r *Responder) send(b []byte) error {
	_, err := r.conn.WriteTo(b, &packet.Addr{HardwareAddr: net.HardwareAddr(b[:6])})
	return err
}

// frame is an Ethernet frame with an ARP packet: from sender to target.
func frame(dst, src net.HardwareAddr, op uint16, senderMAC net.HardwareAddr, sender netip.Addr, targetMAC net.HardwareAddr, target netip.Addr) []byte {
	b := make([]byte, 0, frameLen)
	b = append(b, dst...)
	b = append(b, src...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_ARP)
	b = binary.BigEndian.AppendUint16(b, 1)
	b = binary.BigEndian.AppendUint16(b, 0x0800)
	b = append(b, 6, 4)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(b, senderMAC...)
	b = append(b, sender.AsSlice()...)
	b = append(b, targetMAC...)
	return append(b, target.AsSlice()...)
}
