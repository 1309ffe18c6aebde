package ndp

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	wire "github.com/mdlayher/ndp"
	"golang.org/x/net/bpf"

	"fairway.dev/fairway/internal/announce/raw"
)

var (
	ours   = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	theirs = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	vip    = netip.MustParseAddr("fd00:2::c8")
	host   = netip.MustParseAddr("fd00:2::1")
)

// packet is a frame with a message of neighbour discovery.
func packet(t *testing.T, src net.HardwareAddr, from, to netip.Addr, hops byte, m wire.Message) []byte {
	t.Helper()
	body, err := wire.MarshalMessageChecksum(m, from, to)
	if err != nil {
		t.Fatal(err)
	}
	b := append(append([]byte(nil), ours...), src...)
	b = append(b, 0x86, 0xdd, 6<<4, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, icmpv6, hops)
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	return append(b, body...)
}

func TestAnswer(t *testing.T) {
	group, err := wire.SolicitedNodeMulticast(vip)
	if err != nil {
		t.Fatal(err)
	}
	ask := &wire.NeighborSolicitation{TargetAddress: vip}
	vm, err := bpf.NewVM(filter)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name          string
		frame         []byte
		to            netip.Addr // whom the answer is for; invalid: none
		mac           net.HardwareAddr
		solicited     bool
		conflict, cut bool // cut: the filter refuses it
	}{
		{name: "solicitation", frame: packet(t, theirs, host, group, 255, ask), to: host, mac: theirs, solicited: true},
		{name: "is it still there?", frame: packet(t, theirs, host, vip, 255, ask), to: host, mac: theirs, solicited: true},
		{name: "duplicate address detection", frame: packet(t, theirs, netip.IPv6Unspecified(), group, 255, ask), to: allNodes, mac: allNodesMAC},
		{name: "came through a router", frame: packet(t, theirs, host, group, 254, ask)},
		{name: "not ours", frame: packet(t, theirs, host, group, 255, &wire.NeighborSolicitation{TargetAddress: host})},
		{name: "our own, come back", frame: packet(t, ours, vip, allNodes, 255, &wire.NeighborAdvertisement{TargetAddress: vip})},
		{name: "another has the address", frame: packet(t, theirs, vip, allNodes, 255, &wire.NeighborAdvertisement{TargetAddress: vip, Override: true}), conflict: true},
		{name: "another tells of its own", frame: packet(t, theirs, host, allNodes, 255, &wire.NeighborAdvertisement{TargetAddress: host})},
		{name: "router solicitation", frame: packet(t, theirs, host, allNodes, 255, &wire.RouterSolicitation{}), cut: true},
	} {
		conflict := false
		r := &Responder{link: &net.Interface{HardwareAddr: ours}, config: raw.Config{Conflict: func(a netip.Addr, mac net.HardwareAddr) {
			conflict = a == vip && bytes.Equal(mac, theirs)
		}}}
		r.Add(vip)
		if n, err := vm.Run(tt.frame); err != nil || n == 0 != tt.cut {
			t.Errorf("%s: the filter lets %d bytes through, %v", tt.name, n, err)
		}
		got, _, err := r.answer(tt.frame)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if conflict != tt.conflict || (got != nil) != tt.to.IsValid() {
			t.Errorf("%s: answer %x, conflict %v", tt.name, got, conflict)
			continue
		}
		if got == nil {
			continue
		}
		m, err := wire.ParseMessage(got[ethernetLen+ipv6Len:])
		if err != nil {
			t.Fatal(err)
		}
		na, ok := m.(*wire.NeighborAdvertisement)
		if !ok || na.TargetAddress != vip || na.Solicited != tt.solicited || !na.Override {
			t.Errorf("%s: %+v", tt.name, m)
		}
		if to := netip.AddrFrom16([16]byte(got[38:54])); to != tt.to || !bytes.Equal(got[:6], tt.mac) || got[21] != hopLimit {
			t.Errorf("%s: to %s at %x, hop limit %d", tt.name, to, got[:6], got[21])
		}
	}
	if err := new(Responder).Claim(netip.MustParseAddr("192.0.2.1")); err == nil {
		t.Error("neighbour discovery for IPv4")
	}
	if got := ethernet(group).String(); got != "33:33:ff:00:00:c8" {
		t.Errorf("group %s is at %s", group, got)
	}
}
