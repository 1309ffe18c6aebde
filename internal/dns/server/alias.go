package server

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/wire"
)

// maxAliases is how many CNAMEs of the cluster in a row are followed.
const maxAliases = 8

// follow answers a question about a Service that is a name for something else:
// the CNAME, and what it leads to, in or outside the cluster.
func (s *Server) follow(q *wire.Query, target []byte, size int, sn *seen) []byte {
	m := new(dns.Msg)
	m.Id, m.Response, m.RecursionDesired = q.ID(), true, q.RecursionDesired()
	m.CheckingDisabled = q.CheckingDisabled()
	m.Authoritative, m.RecursionAvailable, m.Compress = true, s.opts.Resolver != nil, true
	m.Question = []dns.Question{{Name: wire.Text(q.RawName()), Qtype: q.Type, Qclass: dns.ClassINET}}
	err := s.chain(m, q.RawName(), q.Type)
	sn.rcode = m.Rcode
	if q.EDNS {
		m.SetEdns0(uint16(s.opts.MaxUDPSize), q.DO)
		if err != nil {
			o := m.IsEdns0()
			o.Option = append(o.Option, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeNoReachableAuthority})
		}
	}
	m.Truncate(size)
	out, err := m.Pack()
	if err != nil {
		var r wire.Reply
		r.Start(q, make([]byte, 0, 512), wire.MinSize)
		sn.rcode = dns.RcodeServerFailure
		return r.Finish(dns.RcodeServerFailure, 0, uint16(s.opts.MaxUDPSize))
	}
	return out
}

var errLongChain = errors.New("too many ExternalName Services lead to one another")

// chain fills m with the records from name on, in wire form, to the end of its aliases.
func (s *Server) chain(m *dns.Msg, name []byte, typ uint16) error {
	for range maxAliases {
		part, next, mine := s.local(name, typ)
		if !mine {
			return s.outside(m, name, typ)
		}
		m.Answer = append(m.Answer, part.Answer...)
		m.Rcode, m.Ns = part.Rcode, part.Ns
		if next == nil {
			return nil
		}
		name = next
	}
	m.Rcode = dns.RcodeServerFailure
	return errLongChain
}

// local asks the cluster's own names.
func (s *Server) local(name []byte, typ uint16) (part *dns.Msg, next []byte, mine bool) {
	msg := make([]byte, 12, 12+len(name)+4)
	binary.BigEndian.PutUint16(msg[4:], 1)
	msg = append(msg, name...)
	msg = binary.BigEndian.AppendUint16(msg, typ)
	msg = binary.BigEndian.AppendUint16(msg, dns.ClassINET)
	var q wire.Query
	if q.Parse(msg) != wire.OK {
		return nil, nil, false
	}
	var r wire.Reply
	r.Start(&q, make([]byte, 0, 512), wire.MaxSize)
	out := s.opts.Store.Answer(&q, &r)
	if !out.Mine {
		return nil, nil, false
	}
	part = new(dns.Msg)
	if err := part.Unpack(r.Finish(out.Rcode, out.Flags, wire.MinSize)); err != nil {
		return nil, nil, false
	}
	return part, out.Alias, true
}

// outside asks the upstreams.
func (s *Server) outside(m *dns.Msg, name []byte, typ uint16) error {
	if s.opts.Resolver == nil {
		return nil // the asker may follow the CNAME itself
	}
	a, err := s.opts.Resolver.ResolveName(s.ctx, name, typ)
	if err == nil {
		var part *dns.Msg
		if part, err = a.Msg(time.Now()); err == nil {
			m.Answer = append(m.Answer, part.Answer...)
			m.Rcode, m.Ns, m.Truncated = part.Rcode, part.Ns, part.Truncated
			return nil
		}
	}
	m.Rcode, m.Ns = dns.RcodeServerFailure, nil
	return err
}
