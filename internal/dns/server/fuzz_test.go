package server_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/dns/server"
	"fairway.dev/fairway/internal/dns/zone"
)

// FuzzPacket: whatever comes in, what goes out is a reply to it, parses, keeps
// to its size and has the question as it came.
func FuzzPacket(f *testing.F) {
	store, err := zone.New(zone.Options{})
	if err != nil {
		f.Fatal(err)
	}
	if err := store.Load(objects()...); err != nil {
		f.Fatal(err)
	}
	resolver, err := forward.New(forward.Options{Upstreams: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")},
		Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("no network in this test")
		}})
	if err != nil {
		f.Fatal(err)
	}
	s, err := server.New(context.Background(), server.Options{Addrs: loopback, Sockets: 1, Store: store, Resolver: resolver})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(s.Close)
	for _, name := range []string{"web.default.svc.cluster.local.", "wEb.DEFAULT.svc.cluster.local.", "db.default.svc.cluster.local.", "outside.default.svc.cluster.local.",
		"inside.default.svc.cluster.local.", "circle.default.svc.cluster.local.", "www.example.org.", "20.0.96.10.in-addr.arpa.", "."} {
		for i, typ := range []uint16{dns.TypeA, dns.TypeSRV, dns.TypeANY, dns.TypePTR} {
			m := question(name, typ)
			if i%2 == 0 {
				m.SetEdns0(700, true)
				m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "24a5ac1223344556"}, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte{1}}}
			}
			raw, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(raw, i%2 == 0)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, udp bool) {
		reply := s.AnswerForTest(raw, udp)
		if reply == nil {
			if len(raw) >= 12 && raw[2]&0x80 == 0 {
				t.Errorf("no answer to a query")
			}
			return
		}
		if len(reply) > 65535 || udp && len(reply) > 1232 {
			t.Errorf("%d bytes", len(reply))
		}
		m := new(dns.Msg)
		if err := m.Unpack(reply); err != nil {
			t.Fatalf("the reply does not parse: %v\n%x", err, reply)
		}
		if !m.Response || !bytes.Equal(reply[:2], raw[:2]) || m.Opcode != int(raw[2]>>3&0xf) {
			t.Errorf("%v: not a reply to %x", m, raw)
		}
		if len(m.Question) == 1 {
			end := 12
			for raw[end] != 0 {
				end += 1 + int(raw[end])
			}
			end += 5 // the root, type and class
			// The question's bytes, and so its letters, come back.
			if !bytes.HasPrefix(reply[12:], raw[12:end]) {
				t.Errorf("question %x, told %x", raw[12:end], reply[12:])
			}
		}
	})
}
