package announce

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/testenv"
)

// countReplies sends ARP requests from the client's br0 and counts how many
// different MAC addresses answer.
func countReplies(t *testing.T, h *testenv.Host, target netip.Addr) int {
	t.Helper()
	return len(replies(t, h, target, 300*time.Millisecond))
}

func replies(t *testing.T, h *testenv.Host, target netip.Addr, wait time.Duration) map[string]bool {
	t.Helper()
	l, err := h.NL.LinkByName("br0")
	if err != nil {
		t.Fatal(err)
	}
	a := l.Attrs()
	var conn *packet.Conn
	err = h.NS.Do(func() (err error) {
		conn, err = packet.Listen(&net.Interface{Index: a.Index, Name: a.Name, HardwareAddr: a.HardwareAddr}, packet.Datagram, unix.ETH_P_ARP, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p := make([]byte, 28)
	binary.BigEndian.PutUint16(p[0:], 1)
	binary.BigEndian.PutUint16(p[2:], 0x0800)
	p[4], p[5] = 6, 4
	binary.BigEndian.PutUint16(p[6:], 1)
	copy(p[8:], a.HardwareAddr)
	copy(p[14:], netip.MustParseAddr("192.0.2.1").AsSlice())
	copy(p[24:], target.AsSlice())
	if _, err := conn.WriteTo(p, &packet.Addr{HardwareAddr: net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}); err != nil {
		t.Fatal(err)
	}
	macs := map[string]bool{}
	conn.SetReadDeadline(time.Now().Add(wait))
	buf := make([]byte, 64)
	for {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			return macs
		}
		// A reply for the target that is meant for us, not an announcement.
		if n >= 28 && binary.BigEndian.Uint16(buf[6:]) == 2 && netip.AddrFrom4([4]byte(buf[14:18])) == target && netip.AddrFrom4([4]byte(buf[24:28])) != target {
			macs[net.HardwareAddr(buf[8:14]).String()] = true
		}
	}
}
