package wire_test

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/wire"
)

func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func question(name string, typ uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, typ)
	return m
}

func TestParse(t *testing.T) {
	long := strings.Repeat("a.", 127)
	tests := []struct {
		name  string
		msg   func() []byte
		want  wire.Verdict
		rcode int
	}{
		{"question", func() []byte { return pack(t, question("a.b.", dns.TypeA)) }, wire.OK, 0},
		{"root", func() []byte { return pack(t, question(".", dns.TypeNS)) }, wire.OK, 0},
		{"longest name", func() []byte { return pack(t, question(long, dns.TypeA)) }, wire.OK, 0},
		{"longest label", func() []byte { return pack(t, question(strings.Repeat("x", 63)+".", dns.TypeA)) }, wire.OK, 0},
		{"EDNS", func() []byte { m := question("a.", dns.TypeA); m.SetEdns0(4096, true); return pack(t, m) }, wire.OK, 0},
		{"empty", func() []byte { return nil }, wire.Drop, 0},
		{"short", func() []byte { return make([]byte, 11) }, wire.Drop, 0},
		{"reply", func() []byte { m := question("a.", dns.TypeA); m.Response = true; return pack(t, m) }, wire.Drop, 0},
		{"notify", func() []byte { m := question("a.", dns.TypeA); m.Opcode = dns.OpcodeNotify; return pack(t, m) }, wire.Refuse, dns.RcodeNotImplemented},
		{"no question", func() []byte { return make([]byte, 12) }, wire.Refuse, dns.RcodeFormatError},
		{"two questions", func() []byte {
			m := question("a.", dns.TypeA)
			m.Question = append(m.Question, m.Question[0])
			return pack(t, m)
		}, wire.Refuse, dns.RcodeFormatError},
		{"cut in the name", func() []byte { return pack(t, question("abc.de.", dns.TypeA))[:15] }, wire.Refuse, dns.RcodeFormatError},
		{"cut in the type", func() []byte { b := pack(t, question("abc.de.", dns.TypeA)); return b[:len(b)-3] }, wire.Refuse, dns.RcodeFormatError},
		{"pointer to itself", func() []byte { return unhex("000101000001000000000000c00c00010001") }, wire.Refuse, dns.RcodeFormatError},
		{"name too long", func() []byte {
			b := pack(t, question(long, dns.TypeA))
			return bytes.Replace(b, []byte("\x01a"), []byte("\x02aa"), 1)
		}, wire.Refuse, dns.RcodeFormatError},
		{"two OPT", func() []byte {
			m := question("a.", dns.TypeA)
			m.SetEdns0(4096, false)
			m.Extra = append(m.Extra, m.Extra[0])
			return pack(t, m)
		}, wire.Refuse, dns.RcodeFormatError},
		{"OPT of a later version", func() []byte {
			m := question("a.", dns.TypeA)
			m.SetEdns0(4096, false).IsEdns0().SetVersion(1)
			return pack(t, m)
		}, wire.Refuse, dns.RcodeBadVers},
		{"records that are not there", func() []byte { b := pack(t, question("a.", dns.TypeA)); b[11] = 9; return b }, wire.Refuse, dns.RcodeFormatError},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var q wire.Query
			if got := q.Parse(tt.msg()); got != tt.want || q.Rcode != tt.rcode {
				t.Errorf("verdict %d, rcode %d; want %d, %d", got, q.Rcode, tt.want, tt.rcode)
			}
		})
	}
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

func TestQuery(t *testing.T) {
	m := question("WWW.Example.ORG.", dns.TypeAAAA)
	m.SetEdns0(1400, true)
	m.CheckingDisabled, m.AuthenticatedData = true, true
	var q wire.Query
	if q.Parse(pack(t, m)) != wire.OK {
		t.Fatal("does not parse")
	}
	if got := wire.Text(q.Name); got != "www.example.org." {
		t.Errorf("name %q", got)
	}
	if got := wire.Text(q.RawName()); got != "WWW.Example.ORG." {
		t.Errorf("name as it came %q", got)
	}
	if q.ID() != m.Id || q.Type != dns.TypeAAAA || q.Class != dns.ClassINET || !q.EDNS || !q.DO || q.UDPSize != 1400 ||
		!q.RecursionDesired() || !q.CheckingDisabled() || !q.AuthenticData() {
		t.Errorf("query %+v", q)
	}
	if len(q.Labels) != 3 || string(q.Label(1)) != "example" || wire.Text(q.Suffix(1)) != "example.org." || wire.Text(q.Suffix(3)) != "." {
		t.Errorf("labels %v", q.Labels)
	}
	for _, tt := range []struct {
		edns       bool
		size, want int
	}{{false, 0, 512}, {true, 100, 512}, {true, 1000, 1000}, {true, 65535, 1232}} {
		q.EDNS, q.UDPSize = tt.edns, uint16(tt.size)
		if got := q.ReplySize(1232); got != tt.want {
			t.Errorf("size with EDNS %v, %d: %d, want %d", tt.edns, tt.size, got, tt.want)
		}
	}
}

// Every kind of record, read back by another implementation; and none of them
// goes past the limit, wherever that is.
func TestReply(t *testing.T) {
	m := question("Srv.Example.", dns.TypeANY)
	m.SetEdns0(4096, true)
	raw := pack(t, m)
	for size := 512; size >= 60; size-- {
		var q wire.Query
		q.Parse(raw)
		var r wire.Reply
		r.Start(&q, nil, size)
		r.Error = dns.ExtendedErrorCodeStaleAnswer
		r.A(wire.QuestionName, 1, [4]byte{192, 0, 2, 1})
		r.AAAA(wire.QuestionName, 2, [16]byte{0x20, 1, 0xd, 0xb8, 15: 1})
		off, ok := r.SRV(wire.QuestionName, 3, 1, 2, 3, wire.Target{Labels: []byte("\x01a"), Name: q.RawName()})
		r.TXT(wire.QuestionName, 4, "text")
		r.Name(wire.QuestionName, dns.TypeCNAME, 5, wire.Target{Labels: []byte("\x01b"), Pointer: wire.QuestionName + 4})
		r.HINFO(wire.QuestionName, 6, "RFC8482", "")
		r.Authority()
		r.SOA(wire.QuestionName+4, 7, wire.SOA{MName: wire.Target{Pointer: wire.QuestionName}, RName: wire.Target{Name: []byte{0}},
			Serial: 1, Refresh: 2, Retry: 3, Expire: 4, Minimum: 5})
		r.Additional()
		if ok {
			r.A(off, 8, [4]byte{192, 0, 2, 2})
		}
		msg := r.Finish(dns.RcodeSuccess, wire.Authoritative, 1232)
		if len(msg) > size {
			t.Fatalf("%d bytes, want at most %d", len(msg), size)
		}
		reply := new(dns.Msg)
		if err := reply.Unpack(msg); err != nil {
			t.Fatalf("in %d bytes: %v", size, err)
		}
		if size < 512 {
			continue
		}
		want := "Srv.Example. 1 IN A 192.0.2.1|Srv.Example. 2 IN AAAA 2001:db8::1|Srv.Example. 3 IN SRV 1 2 3 a.Srv.Example.|" +
			"Srv.Example. 4 IN TXT \"text\"|Srv.Example. 5 IN CNAME b.Example.|Srv.Example. 6 IN HINFO \"RFC8482\" \"\"|" +
			"Example. 7 IN SOA Srv.Example. . 1 2 3 4 5|a.Srv.Example. 8 IN A 192.0.2.2"
		var got []string
		for _, rr := range append(append(reply.Answer, reply.Ns...), reply.Extra...) {
			if rr.Header().Rrtype != dns.TypeOPT {
				got = append(got, strings.Join(strings.Fields(rr.String()), " "))
			}
		}
		if strings.Join(got, "|") != want {
			t.Errorf("records\n%s\nwant\n%s", strings.Join(got, "\n"), strings.ReplaceAll(want, "|", "\n"))
		}
		o := reply.IsEdns0()
		if o == nil || o.UDPSize() != 1232 || !o.Do() || len(o.Option) != 1 || o.Option[0].(*dns.EDNS0_EDE).InfoCode != dns.ExtendedErrorCodeStaleAnswer {
			t.Errorf("OPT %v", o)
		}
		if ttls, ok := wire.TTLs(msg); !ok || len(ttls) != 8 {
			t.Errorf("times to live at %v, %v", ttls, ok)
		}
	}
}

func TestAppendName(t *testing.T) {
	for name, want := range map[string]string{"": "\x00", ".": "\x00", "a.B": "\x01a\x01b\x00", "a.b.": "\x01a\x01b\x00"} {
		if got, ok := wire.AppendName(nil, name); !ok || string(got) != want {
			t.Errorf("%q: %q, %v; want %q", name, got, ok, want)
		}
	}
	for _, name := range []string{"a..b", ".a", strings.Repeat("x", 64), strings.Repeat("abc.", 64)} {
		if got, ok := wire.AppendName([]byte("keep"), name); ok || string(got) != "keep" {
			t.Errorf("%q: %q, %v; want a refusal", name, got, ok)
		}
	}
}

// FuzzQuery: whatever comes in, nothing panics, what is answered parses, and
// what this parser takes for a question another does too.
func FuzzQuery(f *testing.F) {
	edns := question("_https._tcp.kubernetes.default.svc.cluster.local.", dns.TypeSRV)
	edns.SetEdns0(1232, true)
	for _, m := range []*dns.Msg{question(".", dns.TypeNS), question("KuberNetes.default.svc.cluster.local.", dns.TypeA), edns} {
		f.Add(pack(f, m))
	}
	f.Add(unhex("000101000001000000000000c00c00010001"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		var q wire.Query
		verdict := q.Parse(msg)
		if verdict == wire.Drop {
			return
		}
		var r wire.Reply
		r.Start(&q, nil, wire.MinSize)
		r.A(wire.QuestionName, 5, [4]byte{})
		reply := r.Finish(q.Rcode, 0, 1232)
		if verdict == wire.Refuse {
			if q.Rcode == 0 {
				t.Error("refused without a reason")
			}
			r.Start(&q, nil, wire.MinSize)
			if err := new(dns.Msg).Unpack(r.Finish(q.Rcode, 0, 1232)); err != nil {
				t.Errorf("refusal of %x does not parse: %v", msg, err)
			}
			return
		}
		m := new(dns.Msg)
		if err := m.Unpack(reply); err != nil {
			t.Fatalf("reply does not parse: %v\n%x", err, reply)
		}
		if m.Id != q.ID() || len(m.Question) != 1 || m.Question[0].Qtype != q.Type || m.Question[0].Name != wire.Text(q.RawName()) {
			t.Errorf("reply %v to question %q %d", m, q.Name, q.Type)
		}
	})
}

// FuzzTTLs: no message makes it look outside.
func FuzzTTLs(f *testing.F) {
	m := question("a.", dns.TypeA)
	m.Response = true
	rr, _ := dns.NewRR("a. 5 IN A 192.0.2.1")
	m.Answer = []dns.RR{rr}
	f.Add(pack(f, m))
	f.Fuzz(func(t *testing.T, msg []byte) {
		ttls, ok := wire.TTLs(msg)
		for _, off := range ttls {
			if ok && int(off)+4 > len(msg) {
				t.Errorf("offset %d of %d bytes", off, len(msg))
			}
		}
	})
}
