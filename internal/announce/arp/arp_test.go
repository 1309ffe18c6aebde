package arp

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"

	"fairway.dev/fairway/internal/announce/raw"
)

var (
	ours   = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	theirs = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	nobody = make(net.HardwareAddr, 6)
	vip    = netip.MustParseAddr("192.0.2.200")
	host   = netip.MustParseAddr("192.0.2.1")
	zero   = netip.IPv4Unspecified()
)

func TestAnswer(t *testing.T) {
	other := netip.MustParseAddr("192.0.2.201")
	for _, tt := range []struct {
		name     string
		frame    []byte
		answer   []byte
		conflict bool
	}{
		{"request", frame(broadcast, theirs, opRequest, theirs, host, nobody, vip),
			frame(theirs, ours, opReply, ours, vip, theirs, host), false},
		{"unicast request (RFC 1122: is the neighbour still there?)", frame(ours, theirs, opRequest, theirs, host, ours, vip),
			frame(theirs, ours, opReply, ours, vip, theirs, host), false},
		{"probe (RFC 5227)", frame(broadcast, theirs, opRequest, theirs, zero, nobody, vip),
			frame(theirs, ours, opReply, ours, vip, theirs, zero), false},
		{"not ours", frame(broadcast, theirs, opRequest, theirs, host, nobody, other), nil, false},
		{"reply to us", frame(ours, theirs, opReply, theirs, host, ours, vip), nil, false},
		{"announced by another, as a request", frame(broadcast, theirs, opRequest, theirs, vip, nobody, vip), nil, true},
		{"announced by another, as a reply", frame(broadcast, theirs, opReply, theirs, vip, broadcast, vip), nil, true},
		{"used by another to ask for a third", frame(broadcast, theirs, opRequest, theirs, vip, nobody, host), nil, true},
		{"our own, come back", frame(broadcast, ours, opRequest, ours, vip, nobody, vip), nil, false},
		{"cut short", frame(broadcast, theirs, opRequest, theirs, host, nobody, vip)[:frameLen-1], nil, false},
		{"not Ethernet", bytes.Replace(frame(broadcast, theirs, opRequest, theirs, host, nobody, vip), []byte{8, 6, 0, 1}, []byte{8, 6, 0, 6}, 1), nil, false},
	} {
		conflict := false
		r := &Responder{mac: ours, config: raw.Config{Conflict: func(a netip.Addr, mac net.HardwareAddr) {
			conflict = a == vip && bytes.Equal(mac, theirs)
		}}}
		if err := r.Claim(vip); err != nil {
			t.Fatal(err)
		}
		got, _ := r.answer(tt.frame)
		if !bytes.Equal(got, tt.answer) || conflict != tt.conflict {
			t.Errorf("%s: answer %x, want %x; conflict %v, want %v", tt.name, got, tt.answer, conflict, tt.conflict)
		}
		r.Release(vip)
		if got, _ := r.answer(tt.frame); got != nil {
			t.Errorf("%s: answered for a released address", tt.name)
		}
	}
	if err := new(Responder).Claim(netip.MustParseAddr("fd00::1")); err == nil {
		t.Error("ARP for IPv6")
	}
}

func TestFilter(t *testing.T) {
	vm, err := bpf.NewVM(filter)
	if err != nil {
		t.Fatal(err)
	}
	for op, want := range map[uint16]bool{opRequest: true, opReply: true, 3: false, 8: false, 0x0101: false} {
		b := frame(broadcast, theirs, op, theirs, host, nobody, vip)
		if binary.BigEndian.Uint16(b[20:]) != op {
			t.Fatal("the operation is elsewhere")
		}
		if n, err := vm.Run(b); err != nil || (n > 0) != want {
			t.Errorf("operation %d: %d bytes, %v", op, n, err)
		}
	}
}
