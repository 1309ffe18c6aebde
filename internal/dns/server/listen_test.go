package server

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"fairway.dev/fairway/internal/testenv"
)

// An asker's address decides which socket its questions come to, whatever
// ports they come from; and different askers come to different sockets.
func TestSocketsByAddress(t *testing.T) {
	testenv.RequireRoot(t)
	host := testenv.NewHost(t, "sockets")
	host.AddAddr(t, "lo", "fd00::1/128")
	for i := range 20 {
		host.AddAddr(t, "lo", fmt.Sprintf("fd00::%x/128", 0x100+i))
	}
	for _, tt := range []struct {
		listen string
		server string
		client func(i int) string
	}{
		{"127.0.0.1:0", "127.0.0.1", func(i int) string { return fmt.Sprintf("127.0.1.%d", i+1) }},
		{"[fd00::1]:0", "fd00::1", func(i int) string { return fmt.Sprintf("fd00::%x", 0x100+i) }},
		{"[::]:0", "127.0.0.1", func(i int) string { return fmt.Sprintf("127.0.2.%d", i+1) }},
		{"[::]:0", "fd00::1", func(i int) string { return fmt.Sprintf("fd00::%x", 0x100+i) }},
	} {
		t.Run(tt.listen+" from "+tt.server, func(t *testing.T) {
			conns, err := listenUDP(context.Background(), host.NS, netip.MustParseAddrPort(tt.listen), 16)
			if err != nil {
				t.Fatal(err)
			}
			port := conns[0].LocalAddr().(*net.UDPAddr).Port
			defer func() {
				for _, c := range conns {
					c.Close()
				}
			}()
			used := map[int]bool{}
			for i := range 20 {
				from := net.ParseIP(tt.client(i))
				for range 5 {
					err := host.NS.Do(func() error {
						c, err := net.DialUDP("udp", &net.UDPAddr{IP: from}, &net.UDPAddr{IP: net.ParseIP(tt.server), Port: port})
						if err != nil {
							return err
						}
						defer c.Close()
						_, err = c.Write([]byte("x"))
						return err
					})
					if err != nil {
						t.Fatal(err)
					}
				}
				got, total := make([]int, len(conns)), 0
				for end := time.Now().Add(20 * time.Second); total < 5 && time.Now().Before(end); {
					for n, c := range conns {
						arrived := drain(c)
						got[n] += arrived
						total += arrived
					}
				}
				at := slices.IndexFunc(got, func(n int) bool { return n > 0 })
				if at < 0 || got[at] != 5 {
					t.Fatalf("5 datagrams from %v: at the sockets arrived %v", from, got)
				}
				used[at] = true
			}
			if len(used) < 6 {
				t.Errorf("20 askers share %d sockets", len(used))
			}
		})
	}
}

func drain(c *net.UDPConn) (n int) {
	buf := make([]byte, 16)
	for {
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := c.Read(buf); err != nil {
			return n
		}
		n++
	}
}
