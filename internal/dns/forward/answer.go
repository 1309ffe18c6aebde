package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/wire"
)

// Answer is what an upstream said of one question, in wire form, ready to be
// told to any number of askers. It never changes.
type Answer struct {
	msg    []byte   // without OPT; the question's name in small letters
	ttls   []uint16 // where the records' times to live are
	rcode  int
	ttl    time.Duration // for how long it holds; zero if it must not be kept
	stored time.Time
	// partial is true for an answer that the upstream has cut short, and whose
	// rest could not be had. It is not kept.
	partial bool
	// denies is true for NXDOMAIN, for no records of the type, and for failures.
	denies bool
}

// Rcode is the answer's response code.
func (a *Answer) Rcode() int { return a.rcode }

// useful reports whether the answer says something of the name, and not only
// that nobody could.
func (a *Answer) useful() bool { return a.rcode == dns.RcodeSuccess || a.rcode == dns.RcodeNameError }

// Limits on how long an upstream's answer is believed.
const (
	maxTTL         = time.Hour
	maxNegativeTTL = 5 * time.Minute
	// failureTTL is for how long a failure is remembered (RFC 9520 section 3.2).
	failureTTL = 2 * time.Second
	// staleTTL is told to askers along with a stale answer (RFC 8767 section 4 recommends it).
	staleTTL = 30
)

// newAnswer makes an Answer of an upstream's reply to key.
func newAnswer(k key, m *dns.Msg, now time.Time) (*Answer, error) {
	a := &Answer{rcode: m.Rcode, stored: now}
	name := wire.Text([]byte(k.name))
	out := *m
	out.Compress = true
	out.Question = []dns.Question{{Name: name, Qtype: k.typ, Qclass: dns.ClassINET}}
	out.Extra = nil
	for _, rr := range m.Extra {
		if t := rr.Header().Rrtype; t != dns.TypeOPT && t != dns.TypeTSIG && t != dns.TypeSIG {
			out.Extra = append(out.Extra, rr)
		}
	}
	for _, section := range [][]dns.RR{out.Answer, out.Ns, out.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype == dns.TypeOPT {
				return nil, errors.New("OPT outside of the additional section") // RFC 6891 section 6.1.1
			}
			// Written the same way, it becomes a pointer to the question, and so takes the asker's letters on.
			if strings.EqualFold(rr.Header().Name, name) {
				rr.Header().Name = name
			}
		}
	}
	a.ttl, a.denies = lifetime(m)
	if m.Truncated {
		a.partial, a.ttl = true, 0
	}
	out.Rcode &= 0xf
	var err error
	if a.msg, err = out.Pack(); err != nil {
		return nil, err
	}
	// A record that came without data is written as one with half of it.
	if err := new(dns.Msg).Unpack(a.msg); err != nil {
		return nil, fmt.Errorf("malformed: %w", err)
	}
	var ok bool
	if a.ttls, ok = wire.TTLs(a.msg); !ok {
		return nil, errors.New("message too large")
	}
	if len(a.msg) < headerLen+len(k.name)+4 {
		return nil, errors.New("message without its question")
	}
	return a, nil
}

const headerLen = 12

// lifetime is how long a reply may be kept, and whether it has no record to tell
// (RFC 2308 section 5: the lesser of the SOA's own time to live and its last field).
func lifetime(m *dns.Msg) (time.Duration, bool) {
	switch {
	case m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError:
		ttl := maxTTL
		for _, rr := range m.Answer {
			ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
		}
		if m.Rcode == dns.RcodeSuccess && len(m.Answer) > 0 && answers(m) {
			return ttl, false
		}
		// Nothing at all, or a CNAME that leads to nothing.
		return min(ttl, negativeTTL(m)), true
	default:
		return failureTTL, true
	}
}

// answers reports whether the answer section has a record of the asked type.
func answers(m *dns.Msg) bool {
	if len(m.Question) == 0 {
		return true
	}
	want := m.Question[0].Qtype
	for _, rr := range m.Answer {
		if t := rr.Header().Rrtype; t == want || want == dns.TypeANY {
			return true
		}
	}
	return false
}

func negativeTTL(m *dns.Msg) time.Duration {
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second, maxNegativeTTL)
		}
	}
	return 0 // RFC 2308 section 5: without an SOA it should not be kept
}

// fresh reports whether the answer still holds.
func (a *Answer) fresh(now time.Time) bool { return now.Sub(a.stored) < a.ttl }

// Write tells the answer to an asker of the same question: in buf, as far as
// its capacity goes, in at most size bytes. Of what does not fit, as many whole
// records are told as do: the asker sees the truncation flag and comes again
// over TCP, or makes do with them, as some resolvers of containers do. most is
// what this server receives over UDP.
func (a *Answer) Write(q *wire.Query, buf []byte, size int, most uint16, now time.Time) []byte {
	opt, extended := 0, uint16(wire.NoError)
	stale := a.ttl > 0 && !a.fresh(now) && a.useful()
	if q.EDNS {
		opt = 11
		if stale {
			opt, extended = 17, dns.ExtendedErrorCodeStaleAnswer
			if a.rcode == dns.RcodeNameError {
				extended = dns.ExtendedErrorCodeStaleNXDOMAINAnswer
			}
		}
	}
	question := q.Question()
	b := append(buf[:0], a.msg...)
	truncated := a.partial
	if len(b)+opt > size {
		var less bool
		b, less = a.cut(b, headerLen+len(question), size-opt)
		truncated = truncated || less
	}
	copy(b, q.Raw[:2])
	copy(b[headerLen:], question)
	flags := b[3] & 0x20 // AD
	if !q.DO && !q.AuthenticData() {
		flags = 0
	}
	b[2] = 0x80 | q.Raw[2]&0x01
	b[3] = 0x80 | flags | q.Raw[3]&0x10 | byte(a.rcode&0xf)
	if truncated {
		b[2] |= 0x02
	}
	age := uint32(now.Sub(a.stored) / time.Second)
	for _, off := range a.ttls {
		if int(off) >= len(b) {
			break // cut off
		}
		ttl := binary.BigEndian.Uint32(b[off:])
		switch {
		case stale:
			ttl = staleTTL
		case ttl > age:
			ttl -= age
		default:
			ttl = 0
		}
		binary.BigEndian.PutUint32(b[off:], min(ttl, uint32(maxTTL/time.Second)))
	}
	if q.EDNS {
		b = wire.AppendOPT(b, q.DO, a.rcode, extended, most)
		binary.BigEndian.PutUint16(b[10:], binary.BigEndian.Uint16(b[10:])+1)
	}
	return b
}

// cut shortens b, a copy of the message whose records begin at end, to size
// bytes: to the first records of the answer section. It reports whether
// anything misses that was asked for; if only other sections do, whose records
// are a help at best, nothing does (RFC 2181 section 9).
func (a *Answer) cut(b []byte, end, size int) ([]byte, bool) {
	answers, n := int(binary.BigEndian.Uint16(b[6:])), 0
	for ; n < answers; n++ {
		off := int(a.ttls[n])
		next := off + 6 + int(binary.BigEndian.Uint16(b[off+4:])) // the time to live, the data's length, the data
		if next > size {
			break
		}
		end = next
	}
	clear(b[6:headerLen])
	binary.BigEndian.PutUint16(b[6:], uint16(n))
	return b[:end], n < answers || a.denies // a denial needs its SOA
}

// Msg is the answer as github.com/miekg/dns knows it, its times to live as of now.
func (a *Answer) Msg(now time.Time) (*dns.Msg, error) {
	m := new(dns.Msg)
	if err := m.Unpack(a.msg); err != nil {
		return nil, err
	}
	m.Rcode, m.Truncated = a.rcode, a.partial
	age, stale := uint32(now.Sub(a.stored)/time.Second), a.ttl > 0 && !a.fresh(now)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			h := rr.Header()
			switch {
			case stale:
				h.Ttl = staleTTL
			case h.Ttl > age:
				h.Ttl -= age
			default:
				h.Ttl = 0
			}
		}
	}
	return m, nil
}
