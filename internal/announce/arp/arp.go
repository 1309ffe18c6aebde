// Package arp answers ARP requests (RFC 826) on one link for IPv4 addresses
// that no interface has, and announces them (RFC 5227).
//
// In go the addresses to answer for; out go frames. It decides nothing: who
// answers for what is the caller's business. The kernel's own neighbour tables
// and sysctls are not touched.
package arp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/announce/raw"
)

// Operations of RFC 826.
const (
	opRequest = 1
	opReply   = 2
)

// frameLen is an Ethernet header and an ARP packet for IPv4 over Ethernet.
const frameLen = 14 + 28

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// filter lets requests and replies through. Offset 20 is the operation, behind
// the Ethernet header.
var filter = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 20, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: opReply, SkipTrue: 1},
	bpf.RetConstant{Val: frameLen},
	bpf.RetConstant{Val: 0},
}

// Responder answers on one link. It is safe for concurrent use.
type Responder struct {
	raw.Table
	config raw.Config
	mac    net.HardwareAddr
	socket *raw.Socket
}

// Open starts answering on a link, for no address yet. It needs CAP_NET_RAW.
// The responder stops by itself when the link is gone; Close it nevertheless.
func Open(c raw.Config) (*Responder, error) {
	c.Logger = c.Logger.With("link", c.Link.Name, "protocol", "arp")
	r := &Responder{config: c, mac: c.Link.HardwareAddr}
	socket, err := raw.Listen(c, unix.ETH_P_ARP, filter, r.handle)
	if err != nil {
		return nil, fmt.Errorf("arp on %s: %w", c.Link.Name, err)
	}
	r.socket = socket
	return r, nil
}

// Claim has requests for an IPv4 address answered from now on.
func (r *Responder) Claim(a netip.Addr) error {
	if !a.Is4() {
		return fmt.Errorf("arp: %s is no IPv4 address", a)
	}
	r.Add(a)
	return nil
}

// Release stops answering for an address.
func (r *Responder) Release(a netip.Addr) { r.Remove(a) }

// Announce tells everybody on the link that the address is here, so that those
// who knew it elsewhere change their minds: once as a request and once as a
// reply, since systems differ in which of them they believe.
func (r *Responder) Announce(a netip.Addr) error {
	if c := r.Find(a); c != nil {
		c.Announcements.Add(2)
	}
	request := frame(broadcast, r.mac, opRequest, r.mac, a, make(net.HardwareAddr, 6), a)
	reply := frame(broadcast, r.mac, opReply, r.mac, a, broadcast, a)
	return errors.Join(r.socket.Send(request), r.socket.Send(reply))
}

// Close stops answering.
func (r *Responder) Close() error { return r.socket.Close() }

func (r *Responder) handle(s *raw.Socket, b []byte) {
	answer, c := r.answer(b)
	if answer == nil {
		return
	}
	if err := s.Send(answer); err != nil {
		r.config.Logger.Debug("answer", "err", err)
		return
	}
	c.Responses.Add(1)
}

// answer is the reply to a frame and whose counters count it, or nil.
func (r *Responder) answer(b []byte) ([]byte, *raw.Counters) {
	if len(b) < frameLen {
		return nil, nil
	}
	p := b[14:]
	// Ethernet (1), IPv4 (0x0800), with lengths 6 and 4.
	if binary.BigEndian.Uint16(p) != 1 || binary.BigEndian.Uint16(p[2:]) != 0x0800 || p[4] != 6 || p[5] != 4 {
		return nil, nil
	}
	hardware := net.HardwareAddr(p[8:14])
	sender, _ := netip.AddrFromSlice(p[14:18])
	target, _ := netip.AddrFromSlice(p[24:28])
	if bytes.Equal(hardware, r.mac) {
		return nil, nil // our own, come back
	}
	if r.Find(sender) != nil {
		// RFC 5227 section 2.4: whatever it asks or says, it takes the address for its own.
		r.config.Conflicting(sender, hardware)
		return nil, nil
	}
	mine := r.Find(target)
	if mine == nil || binary.BigEndian.Uint16(p[6:]) != opRequest {
		return nil, nil
	}
	// Whoever asks with sender 0.0.0.0 checks whether the address is free
	// (RFC 5227 section 2.1.1), and learns that it is not.
	mine.Requests.Add(1)
	return frame(hardware, r.mac, opReply, r.mac, target, hardware, sender), mine
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
