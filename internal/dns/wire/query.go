// Package wire reads DNS questions and writes answers about them, in the
// format of RFC 1035 section 4 with the EDNS(0) of RFC 6891.
//
// In goes a datagram, out comes a Query; a Reply built from it keeps the
// question's bytes as they came, so that the case of its letters survives.
// Neither allocates. The package opens no socket and knows no record of any
// zone; whole foreign messages are github.com/miekg/dns's business.
package wire

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

const (
	headerLen = 12
	maxName   = 255
	maxLabels = 128
	optLen    = 11
)

// Verdict says what is to be done with a datagram after Parse.
type Verdict uint8

const (
	// OK: the Query holds one well-formed question.
	OK Verdict = iota
	// Drop: no query at all; answering it could make two servers talk forever.
	Drop
	// Refuse: answer with the Query's Rcode and nothing else.
	Refuse
)

// Query is one question as it came. Its slices point into Raw or into itself:
// it is valid as long as the datagram's buffer is, and must not be copied while
// Name is used. The zero value is ready for Parse and can be used again.
type Query struct {
	// Raw is the whole message.
	Raw []byte
	// Name is the question's name in wire form, lowercased, the root label included.
	Name []byte
	// Labels holds where in Name each label but the root begins.
	Labels []uint8
	Type   uint16
	Class  uint16
	// Rcode is the answer that Refuse asks for (dns.RcodeBadVers included).
	Rcode int

	// EDNS is true when the query carried an OPT record; the next two are from it.
	EDNS    bool
	UDPSize uint16
	DO      bool

	questionEnd int
	nameBuf     [maxName]byte
	labelBuf    [maxLabels]uint8
}

// ID is the message's identifier.
func (q *Query) ID() uint16 { return binary.BigEndian.Uint16(q.Raw) }

// RecursionDesired is the query's RD flag.
func (q *Query) RecursionDesired() bool { return q.Raw[2]&1 != 0 }

// CheckingDisabled is the query's CD flag (RFC 4035 section 3.2.2).
func (q *Query) CheckingDisabled() bool { return q.Raw[3]&0x10 != 0 }

// AuthenticData is the query's AD flag (RFC 6840 section 5.7: the asker
// understands it in the answer).
func (q *Query) AuthenticData() bool { return q.Raw[3]&0x20 != 0 }

// Question is the question section as it came.
func (q *Query) Question() []byte { return q.Raw[headerLen:q.questionEnd] }

// RawName is the name as it came, its letters' case kept.
func (q *Query) RawName() []byte { return q.Raw[headerLen : headerLen+len(q.Name)] }

// Suffix is the name from its i'th label on, lowercased; the root if i is the number of labels.
func (q *Query) Suffix(i int) []byte {
	if i >= len(q.Labels) {
		return q.Name[len(q.Name)-1:]
	}
	return q.Name[q.Labels[i]:]
}

// Label is the i'th label without its length byte, lowercased.
func (q *Query) Label(i int) []byte {
	o := int(q.Labels[i])
	return q.Name[o+1 : o+1+int(q.Name[o])]
}

// Parse reads a message. On OK every field is set; on Refuse the question is
// set if it could be read. Parse never panics and never looks past msg.
func (q *Query) Parse(msg []byte) Verdict {
	q.Raw, q.Name, q.Labels = msg, nil, nil
	q.Type, q.Class, q.Rcode = 0, 0, 0
	q.EDNS, q.UDPSize, q.DO, q.questionEnd = false, 0, false, headerLen
	if len(msg) < headerLen || msg[2]&0x80 != 0 {
		return Drop
	}
	if opcode := msg[2] >> 3 & 0xf; opcode != dns.OpcodeQuery {
		return q.refuse(dns.RcodeNotImplemented)
	}
	if binary.BigEndian.Uint16(msg[4:]) != 1 || msg[2]&0x02 != 0 {
		return q.refuse(dns.RcodeFormatError)
	}
	off := q.parseName(headerLen)
	if off < 0 || off+4 > len(msg) {
		q.Name, q.Labels = nil, nil
		return q.refuse(dns.RcodeFormatError)
	}
	q.Type = binary.BigEndian.Uint16(msg[off:])
	q.Class = binary.BigEndian.Uint16(msg[off+2:])
	q.questionEnd = off + 4
	return q.parseRest(q.questionEnd)
}

func (q *Query) refuse(rcode int) Verdict {
	q.Rcode = rcode
	return Refuse
}

// parseName reads the question's name, which has nothing before it that a
// compression pointer could point at. It returns where the name ends, or -1.
func (q *Query) parseName(off int) int {
	msg, n, labels := q.Raw, 0, 0
	for {
		if off >= len(msg) {
			return -1
		}
		l := int(msg[off])
		if l == 0 {
			q.nameBuf[n] = 0
			q.Name, q.Labels = q.nameBuf[:n+1], q.labelBuf[:labels]
			return off + 1
		}
		// The two high bits mark pointers and label types that never came to be.
		if l > 63 || off+1+l > len(msg) || n+1+l >= maxName {
			return -1
		}
		q.labelBuf[labels] = uint8(n)
		labels++
		q.nameBuf[n] = byte(l)
		for i, c := range msg[off+1 : off+1+l] {
			q.nameBuf[n+1+i] = lower[c]
		}
		n += 1 + l
		off += 1 + l
	}
}

// parseRest walks over the records after the question, in search of OPT.
func (q *Query) parseRest(off int) Verdict {
	msg := q.Raw
	before := int(binary.BigEndian.Uint16(msg[6:])) + int(binary.BigEndian.Uint16(msg[8:]))
	all := before + int(binary.BigEndian.Uint16(msg[10:]))
	for i := range all {
		start := off
		off = skipName(msg, off)
		if off < 0 || off+10 > len(msg) {
			return q.refuse(dns.RcodeFormatError)
		}
		typ := binary.BigEndian.Uint16(msg[off:])
		end := off + 10 + int(binary.BigEndian.Uint16(msg[off+8:]))
		if end > len(msg) {
			return q.refuse(dns.RcodeFormatError)
		}
		if typ == dns.TypeOPT {
			// RFC 6891 section 6.1.1: one OPT at most, owned by the root, in the additional section.
			if q.EDNS || i < before || msg[start] != 0 {
				return q.refuse(dns.RcodeFormatError)
			}
			q.EDNS = true
			q.UDPSize = binary.BigEndian.Uint16(msg[off+2:])
			q.DO = msg[off+6]&0x80 != 0
			if msg[off+5] != 0 {
				q.Rcode = dns.RcodeBadVers
			}
		}
		off = end
	}
	if q.Rcode != 0 {
		return Refuse
	}
	return OK
}

// skipName returns the offset after a possibly compressed name, or -1.
func skipName(msg []byte, off int) int {
	for off < len(msg) {
		switch l := int(msg[off]); {
		case l == 0:
			return off + 1
		case l >= 0xc0:
			return off + 2
		case l > 63:
			return -1
		default:
			off += 1 + l
		}
	}
	return -1
}

// lower maps ASCII capitals to small letters and leaves every other byte (RFC 4343).
var lower = func() (t [256]byte) {
	for i := range t {
		t[i] = byte(i)
	}
	for c := 'A'; c <= 'Z'; c++ {
		t[c] = byte(c) + 'a' - 'A'
	}
	return t
}()

// AppendName appends a name in its textual form ("a.b.", no escapes) in wire
// form, lowercased. It reports false, and appends nothing, for a name that has
// an empty label, a label over 63 bytes or more than 255 bytes in all.
func AppendName(b []byte, name string) ([]byte, bool) {
	start := len(b)
	for len(name) > 0 && name != "." {
		label := name
		rest := ""
		for i := range len(name) {
			if name[i] == '.' {
				label, rest = name[:i], name[i+1:]
				break
			}
		}
		if len(label) == 0 || len(label) > 63 {
			return b[:start], false
		}
		b = append(b, byte(len(label)))
		for i := range len(label) {
			b = append(b, lower[label[i]])
		}
		name = rest
	}
	b = append(b, 0)
	if len(b)-start > maxName {
		return b[:start], false
	}
	return b, true
}

// Text is a wire-form name as RFC 1035 section 5.1 writes it, for logs and for
// github.com/miekg/dns: fully qualified, odd bytes escaped.
func Text(name []byte) string {
	s, _, err := dns.UnpackDomainName(name, 0)
	if err != nil {
		return "."
	}
	return s
}

// TTLs returns where the time-to-live of each record of a well-formed message
// is, OPT left out, and false for a message that is not well-formed.
func TTLs(msg []byte) ([]uint16, bool) {
	if len(msg) < headerLen || len(msg) > MaxSize {
		return nil, false
	}
	off := headerLen
	for range binary.BigEndian.Uint16(msg[4:]) {
		if off = skipName(msg, off); off < 0 || off+4 > len(msg) {
			return nil, false
		}
		off += 4
	}
	records := 0
	for i := 6; i < headerLen; i += 2 {
		records += int(binary.BigEndian.Uint16(msg[i:]))
	}
	var ttls []uint16
	for range records {
		if off = skipName(msg, off); off < 0 || off+10 > len(msg) {
			return nil, false
		}
		if binary.BigEndian.Uint16(msg[off:]) != dns.TypeOPT {
			ttls = append(ttls, uint16(off+4))
		}
		off += 10 + int(binary.BigEndian.Uint16(msg[off+8:]))
		if off > len(msg) {
			return nil, false
		}
	}
	return ttls, true
}
