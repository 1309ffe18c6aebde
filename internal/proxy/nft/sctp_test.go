package nft

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"fairway.dev/fairway/internal/proxy/state"
	"fairway.dev/fairway/internal/testenv"
)

// sctpDial connects a raw SCTP socket.
func sctpDial(l *lab, h *testenv.Host, to netip.Addr) *net.IPConn {
	l.t.Helper()
	network := "ip4:132"
	if to.Is6() {
		network = "ip6:132"
	}
	var c *net.IPConn
	l.ok(h.NS.Do(func() (err error) {
		c, err = net.DialIP(network, nil, &net.IPAddr{IP: to.AsSlice()})
		return err
	}))
	l.t.Cleanup(func() { c.Close() })
	return c
}

func TestSCTP(t *testing.T) {
	each(t, func(t *testing.T, l *lab, a addresses) {
		l.replace(clusterIP(state.SCTP, a.service+":80", 2), clusterIP(state.SCTP, a.service+":81"), nodePort(state.SCTP, a, 3))
		network := map[string]string{"ipv4": "ip4:132", "ipv6": "ip6:132"}[a.name]
		for _, c := range []struct {
			to     string
			from   *testenv.Host
			pod    int
			source string
		}{
			{a.service + ":80", l.pods[0], 2, a.pod[1]},
			{a.service + ":80", l.client, 2, a.gateway[2]},
			{a.service + ":80", l.pods[1], 2, a.gateway[2]}, // hairpin
			{a.node + ":30080", l.client, 3, a.gateway[3]},
		} {
			to := netip.MustParseAddrPort(c.to)
			server := l.pods[c.pod-1].ListenPacket(t, network, a.pod[c.pod])
			client := sctpDial(l, c.from, to.Addr())
			client.SetDeadline(time.Now().Add(patience))
			server.SetDeadline(time.Now().Add(patience))
			_, err := client.Write(testenv.SCTPPacket(5000, to.Port(), 0, testenv.SCTPInit))
			l.ok(err)
			buf := make([]byte, 1500)
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				t.Fatalf("to %s: nothing arrived at pod%d: %v", c.to, c.pod, err)
			}
			if dport := binary.BigEndian.Uint16(buf[2:]); n < 16 || dport != 8080 || buf[12] != testenv.SCTPInit {
				t.Errorf("to %s: got port %d, chunk %d, want 8080, %d", c.to, dport, buf[12], testenv.SCTPInit)
			}
			if from.String() != c.source {
				t.Errorf("to %s: the server sees %s, want %s", c.to, from, c.source)
			}
			sport := binary.BigEndian.Uint16(buf)
			_, err = server.WriteTo(testenv.SCTPPacket(8080, sport, 4711, testenv.SCTPInitAck), from)
			l.ok(err)
			n, err = client.Read(buf)
			if err != nil {
				t.Fatalf("to %s: no answer: %v", c.to, err)
			}
			if a.name == "ipv4" && n > 0 && buf[0]>>4 == 4 {
				copy(buf, buf[int(buf[0]&15)*4:n]) // Read leaves the IP header on
			}
			if s, d := binary.BigEndian.Uint16(buf), binary.BigEndian.Uint16(buf[2:]); s != to.Port() || d != 5000 || buf[12] != testenv.SCTPInitAck {
				t.Errorf("to %s: answer from port %d to %d, chunk %d, want %d, 5000, %d", c.to, s, d, buf[12], to.Port(), testenv.SCTPInitAck)
			}
			server.Close()
			client.Close()
		}
		// Nobody there: ICMP port unreachable.
		for _, to := range []string{a.service + ":81", a.service + ":82"} {
			to := netip.MustParseAddrPort(to)
			client := sctpDial(l, l.pods[0], to.Addr())
			client.SetDeadline(time.Now().Add(patience))
			_, err := client.Write(testenv.SCTPPacket(5001, to.Port(), 0, testenv.SCTPInit))
			l.ok(err)
			if _, err := client.Read(make([]byte, 1500)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("to %s: got %v, want connection refused", to, err)
			}
		}
	})
}
