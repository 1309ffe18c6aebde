package wire

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// Sizes of messages, in bytes.
const (
	// MinSize is what every asker accepts over UDP (RFC 1035 section 4.2.1).
	MinSize = 512
	// MaxSize is the most that a message over TCP holds.
	MaxSize = 65535
)

// Header flags of a reply, as Finish takes them.
const (
	Authoritative      = 0x0400
	Truncated          = 0x0200
	RecursionAvailable = 0x0080
)

// QuestionName is where the question's name begins in every message: what a
// compression pointer to it, or to a part of it, counts from.
const QuestionName = headerLen

// Reply writes an answer to a Query. Records go in answer, authority and
// additional order. A record that no longer fits is left out and its method
// reports false; what was written before stays whole.
type Reply struct {
	q       *Query
	buf     []byte
	limit   int // of len(buf), what OPT will need already taken off
	count   [3]uint16
	section int
	// Error is the extended error (RFC 8914) to tell an asker that speaks
	// EDNS; 0xffff, set by Start, for none.
	Error uint16
}

// NoError is the value of Reply.Error for no extended error.
const NoError = 0xffff

// Start begins a reply to q in buf, whose contents are overwritten and whose
// capacity is used as far as it goes; size bytes are the most the whole message may take.
func (r *Reply) Start(q *Query, buf []byte, size int) {
	r.q, r.count, r.section, r.Error = q, [3]uint16{}, 0, NoError
	r.limit = size
	if q.EDNS {
		r.limit -= optLen + 6 // with one extended error in it
	}
	r.buf = append(buf[:0], q.Raw[:headerLen]...)
	r.buf = append(r.buf, q.Question()...)
}

// Len is the length so far, which is where the next record will begin.
func (r *Reply) Len() int { return len(r.buf) }

// Records is how many records have been written in all sections.
func (r *Reply) Records() int { return int(r.count[0]) + int(r.count[1]) + int(r.count[2]) }

// Authority turns to the authority section.
func (r *Reply) Authority() { r.section = 1 }

// Additional turns to the additional section.
func (r *Reply) Additional() { r.section = 2 }

// start appends a record's head, its owner a pointer to the name at offset
// owner, with room for data bytes of data. A pointer reaches 16 KiB far.
func (r *Reply) start(owner int, typ uint16, ttl uint32, data int) bool {
	if len(r.buf)+12+data > r.limit || owner >= 1<<14 {
		return false
	}
	r.buf = append(r.buf, 0xc0|byte(owner>>8), byte(owner), byte(typ>>8), byte(typ), 0, 1)
	r.buf = binary.BigEndian.AppendUint32(r.buf, ttl)
	r.buf = append(r.buf, byte(data>>8), byte(data))
	r.count[r.section]++
	return true
}

// A writes an address record.
func (r *Reply) A(owner int, ttl uint32, addr [4]byte) bool {
	if !r.start(owner, dns.TypeA, ttl, 4) {
		return false
	}
	r.buf = append(r.buf, addr[:]...)
	return true
}

// AAAA writes an IPv6 address record.
func (r *Reply) AAAA(owner int, ttl uint32, addr [16]byte) bool {
	if !r.start(owner, dns.TypeAAAA, ttl, 16) {
		return false
	}
	r.buf = append(r.buf, addr[:]...)
	return true
}

// Target is a name in parts, written one after the other: labels in wire form,
// then either a name in wire form that ends with the root, or, when Pointer is
// not zero, a compression pointer to that offset of the message.
type Target struct {
	Labels  []byte
	Name    []byte
	Pointer int
}

func (t Target) len() int {
	if t.Pointer != 0 {
		return len(t.Labels) + 2
	}
	return len(t.Labels) + len(t.Name)
}

func (t Target) append(b []byte) []byte {
	b = append(b, t.Labels...)
	if t.Pointer != 0 {
		return append(b, 0xc0|byte(t.Pointer>>8), byte(t.Pointer))
	}
	return append(b, t.Name...)
}

// Name writes a record whose data is one name: CNAME, NS or PTR.
func (r *Reply) Name(owner int, typ uint16, ttl uint32, target Target) bool {
	if !r.start(owner, typ, ttl, target.len()) {
		return false
	}
	r.buf = target.append(r.buf)
	return true
}

// SRV writes a service record and returns the offset of its target's name
// within the message, for address records about it. The target should not be a
// pointer: RFC 2782 forbids compression there, and resolvers exist that reject it.
func (r *Reply) SRV(owner int, ttl uint32, priority, weight, port uint16, target Target) (int, bool) {
	if !r.start(owner, dns.TypeSRV, ttl, 6+target.len()) {
		return 0, false
	}
	r.buf = append(r.buf, byte(priority>>8), byte(priority), byte(weight>>8), byte(weight), byte(port>>8), byte(port))
	off := len(r.buf)
	r.buf = target.append(r.buf)
	return off, true
}

// TXT writes a record of one text of at most 255 bytes.
func (r *Reply) TXT(owner int, ttl uint32, text string) bool {
	if !r.start(owner, dns.TypeTXT, ttl, 1+len(text)) {
		return false
	}
	r.buf = append(r.buf, byte(len(text)))
	r.buf = append(r.buf, text...)
	return true
}

// SOA is the data of a start-of-authority record (RFC 1035 section 3.3.13).
type SOA struct {
	MName, RName                            Target
	Serial, Refresh, Retry, Expire, Minimum uint32
}

// SOA writes a start-of-authority record.
func (r *Reply) SOA(owner int, ttl uint32, s SOA) bool {
	if !r.start(owner, dns.TypeSOA, ttl, s.MName.len()+s.RName.len()+20) {
		return false
	}
	r.buf = s.RName.append(s.MName.append(r.buf))
	for _, v := range [...]uint32{s.Serial, s.Refresh, s.Retry, s.Expire, s.Minimum} {
		r.buf = binary.BigEndian.AppendUint32(r.buf, v)
	}
	return true
}

// HINFO writes a host-information record: RFC 8482's answer to ANY.
func (r *Reply) HINFO(owner int, ttl uint32, cpu, os string) bool {
	if !r.start(owner, dns.TypeHINFO, ttl, 2+len(cpu)+len(os)) {
		return false
	}
	r.buf = append(append(r.buf, byte(len(cpu))), cpu...)
	r.buf = append(append(r.buf, byte(len(os))), os...)
	return true
}

// Finish sets the header and returns the message. size is what this server
// receives over UDP, told to an asker that speaks EDNS.
func (r *Reply) Finish(rcode int, flags uint16, size uint16) []byte {
	b, q := r.buf, r.q
	// QR; the asker's opcode, RD and CD come back.
	b[2] = 0x80 | q.Raw[2]&0x79 | byte(flags>>8)
	b[3] = q.Raw[3]&0x10 | byte(flags) | byte(rcode&0xf)
	questions := uint16(0)
	if q.questionEnd > headerLen {
		questions = 1
	}
	binary.BigEndian.PutUint16(b[4:], questions)
	binary.BigEndian.PutUint16(b[6:], r.count[0])
	binary.BigEndian.PutUint16(b[8:], r.count[1])
	binary.BigEndian.PutUint16(b[10:], r.count[2])
	if q.EDNS {
		b = AppendOPT(b, q.DO, rcode, r.Error, size)
		binary.BigEndian.PutUint16(b[10:], r.count[2]+1)
	}
	r.buf = b
	return b
}

// AppendOPT appends an OPT record (RFC 6891 section 6.1.2) with the upper bits
// of rcode and, unless it is NoError, one extended error. It does not count it in the header.
func AppendOPT(b []byte, do bool, rcode int, extended uint16, size uint16) []byte {
	flags := byte(0)
	if do {
		flags = 0x80
	}
	b = append(b, 0, 0, byte(dns.TypeOPT), byte(size>>8), byte(size), byte(rcode>>4), 0, flags, 0)
	if extended == NoError {
		return append(b, 0, 0)
	}
	return append(b, 0, 6, 0, dns.EDNS0EDE, 0, 2, byte(extended>>8), byte(extended))
}

// ReplySize is how large a reply to q may be over UDP, where this server sends
// no more than most bytes.
func (q *Query) ReplySize(most int) int {
	if !q.EDNS {
		return MinSize
	}
	return max(MinSize, min(int(q.UDPSize), most))
}
