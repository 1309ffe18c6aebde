package main

import (
	"context"
	"strings"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/netns"
)

// outside is what the upstream knows.
var outside = map[string][]string{
	"www.example.com.":    {"www.example.com. 300 IN A 192.0.2.80", "www.example.com. 300 IN AAAA 2001:db8::80"},
	"alias.example.com.":  {"alias.example.com. 60 IN CNAME alias2.example.com.", "alias2.example.com. 60 IN CNAME www.example.com.", "www.example.com. 300 IN A 192.0.2.80"},
	"none.example.com.":   {},
	"broken.example.com.": nil,
	"many.example.com.":   manyRecords(),
}

func manyRecords() (out []string) {
	for range 60 {
		out = append(out, "many.example.com. 300 IN TXT \""+strings.Repeat("x", 20+len(out))+"\"")
	}
	return out
}

// serveOutside answers as an upstream until the namespace goes.
func serveOutside(ns *netns.NS) (stop func(), err error) {
	answer := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		m.RecursionAvailable, m.Compress = true, true
		name := strings.ToLower(q.Question[0].Name)
		records, known := outside[name]
		for _, r := range records {
			rr, err := dns.NewRR(r)
			if err != nil {
				panic(err) // a table of this file
			}
			if t := rr.Header().Rrtype; t == q.Question[0].Qtype || t == dns.TypeCNAME {
				m.Answer = append(m.Answer, rr)
			}
		}
		switch {
		case known && records == nil:
			m.Rcode = dns.RcodeServerFailure
		case !known:
			m.Rcode = dns.RcodeNameError
		}
		if len(m.Answer) == 0 && m.Rcode != dns.RcodeServerFailure {
			soa, _ := dns.NewRR("example.com. 60 IN SOA ns.example.com. root.example.com. 1 2 3 4 60")
			m.Ns = append(m.Ns, soa)
		}
		size := dns.MaxMsgSize
		if w.LocalAddr().Network() == "udp" {
			size = dns.MinMsgSize
			if o := q.IsEdns0(); o != nil {
				size = int(o.UDPSize())
			}
		}
		m.Truncate(size)
		w.WriteMsg(m)
	})
	pc, err := ns.ListenPacket(context.Background(), "udp", upstream)
	if err != nil {
		return nil, err
	}
	l, err := ns.Listen(context.Background(), "tcp", upstream)
	if err != nil {
		pc.Close()
		return nil, err
	}
	udp, tcp := &dns.Server{PacketConn: pc, Handler: answer}, &dns.Server{Listener: l, Handler: answer}
	go udp.ActivateAndServe()
	go tcp.ActivateAndServe()
	return func() { udp.Shutdown(); tcp.Shutdown() }, nil
}
