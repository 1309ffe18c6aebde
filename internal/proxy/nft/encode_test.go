package nft

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"fairway.dev/fairway/internal/proxy/state"
)

func TestSpans(t *testing.T) {
	for _, c := range []struct {
		in   []string
		v6   bool
		want string
	}{
		{nil, false, "[]"},
		{[]string{"10.0.0.0/8"}, false, "[{10.0.0.0 10.255.255.255}]"},
		{[]string{"10.0.0.0/8"}, true, "[]"},
		{[]string{"10.0.0.0/8", "10.1.0.0/16", "10.2.3.4/32"}, false, "[{10.0.0.0 10.255.255.255}]"},
		{[]string{"10.0.1.0/24", "10.0.0.0/24"}, false, "[{10.0.0.0 10.0.1.255}]"},
		{[]string{"10.0.2.0/24", "10.0.0.0/24"}, false, "[{10.0.0.0 10.0.0.255} {10.0.2.0 10.0.2.255}]"},
		{[]string{"0.0.0.0/0", "1.2.3.4/32"}, false, "[{0.0.0.0 255.255.255.255}]"},
		{[]string{"255.255.255.255/32", "255.255.255.254/32"}, false, "[{255.255.255.254 255.255.255.255}]"},
		{[]string{"10.1.2.3/8"}, false, "[{10.0.0.0 10.255.255.255}]"},
		{[]string{"::/0", "fd00::/8"}, true, "[{:: ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff}]"},
		{[]string{"fd00::/127", "fd00::2/128"}, true, "[{fd00:: fd00::2}]"},
	} {
		f := families[0]
		if c.v6 {
			f = families[1]
		}
		var got []string
		for _, s := range spans(prefixes(c.in...), f) {
			got = append(got, fmt.Sprintf("{%s %s}", s.lo, s.hi))
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("spans(%v): got %s, want %s", c.in, got, c.want)
		}
	}
}

// A range up to the last address ends in the padding of the port before it.
func TestAppendSpanCarries(t *testing.T) {
	k := appendKey(nil, key(state.TCP, "10.96.0.1:80"))
	b, n := appendSpan(nil, k, spans(prefixes("0.0.0.0/0"), families[0])[0])
	var keys []string
	attrs(b, func(_ uint16, v []byte) {
		var flags uint32
		attrs(v, func(t uint16, v []byte) {
			if t == 3 {
				flags = uint32(v[3])
			}
		})
		keys = append(keys, fmt.Sprintf("%s %d", hex.EncodeToString(attr(attr(v, 1), 1)), flags))
	})
	want := []string{"0a600001" + "06000000" + "00500000" + "00000000" + " 0", "0a600001" + "06000000" + "00500001" + "00000000" + " 1"}
	if n != 2 || !slices.Equal(keys, want) {
		t.Errorf("got %d elements %v, want %v", n, keys, want)
	}
	if _, n := appendSpan(nil, nil, spans(prefixes("0.0.0.0/0"), families[0])[0]); n != 1 {
		t.Errorf("all addresses with nothing in front: %d elements, want a beginning without end", n)
	}
}

// What is written can be read, and classes that differ have chains that differ.
func TestRecordRoundTrip(t *testing.T) {
	r := random{rand.New(rand.NewPCG(3, 3))}
	p := &Programmer{}
	names := map[string]class{}
	for range 2000 {
		f := r.frontend(r.key())
		is := recordOf(f)
		back, ok := parseRecord(is.append(nil))
		if !ok || back != is {
			t.Fatalf("record of %+v: wrote %+v, read %+v, %v", f, is, back, ok)
		}
		c, ok := parseClassKey(is.key())
		if !ok || c != is.class {
			t.Fatalf("class of %+v: wrote %+v, read %+v, %v", f, is.class, c, ok)
		}
		name := is.chain(p, families[0])
		// Served says no more than the counts; the rest must be in the name.
		if other, ok := names[name]; ok && other != is.class {
			t.Fatalf("chain %s is that of %+v and of %+v", name, other, is.class)
		}
		if names[name] = is.class; len(name) > 100 {
			t.Errorf("long name %s", name)
		}
		key, rest, ok := families[familyOf(f.Key.Addr)].parseKey(appendKey(nil, f.Key))
		if !ok || len(rest) != 0 || key != f.Key {
			t.Fatalf("key %v: read %v, %d bytes left, %v", f.Key, key, len(rest), ok)
		}
	}
}

// The digest must see every change that is not in the class, and stay what it
// is from build to build.
func TestDigest(t *testing.T) {
	f := oneOfMany(1, 3, 0)
	f.Restricted, f.Sources = true, prefixes("10.0.0.0/8")
	was := digest(f)
	for name, change := range map[string]func(f *state.Frontend){
		"port":     func(f *state.Frontend) { f.Backends[2].Addr = netip.AddrPortFrom(f.Backends[2].Addr.Addr(), 1) },
		"order":    func(f *state.Frontend) { slices.Reverse(f.Backends) },
		"fewer":    func(f *state.Frontend) { f.Backends = f.Backends[:2] },
		"sources":  func(f *state.Frontend) { f.Sources = prefixes("10.0.0.0/9") },
		"inside":   func(f *state.Frontend) { f.Inside, f.InsideBackends = true, f.Backends },
		"moved in": func(f *state.Frontend) { f.Inside, f.InsideBackends, f.Backends = true, f.Backends, nil },
	} {
		g := *f
		g.Backends = slices.Clone(f.Backends)
		change(&g)
		if digest(&g) == was {
			t.Errorf("%s: the digest is the same", name)
		}
	}
	f.Masquerade, f.Affinity = state.MasqueradeAlways, time.Hour
	if digest(f) != was {
		t.Error("what is in the class is in the digest too")
	}
	const want = 0x338a0e40dfd7a577
	if was != want {
		t.Errorf("digest %#x, was %#x in other builds: the layout needs other names of sets", was, uint64(want))
	}
}

// Elements are cut into messages that fit into their attribute.
func TestBatchCutsElements(t *testing.T) {
	b := newBatch("t")
	var l elemList
	for i := range 5000 {
		l.put(bytes.Repeat([]byte{byte(i)}, 44), nil)
	}
	b.elems(false, "s", l.b, l.n)
	b.finish(1)
	if b.total != 5000 || len(b.ops) < 4 {
		t.Errorf("%d elements in %d messages", b.total, len(b.ops))
	}
	for _, c := range []struct {
		i    int
		want string
	}{{0, "transaction on table t"}, {1, "add elements to s in table t"}, {len(b.ops) + 1, "commit to table t"}} {
		if got := b.describe(c.i); got != c.want {
			t.Errorf("describe(%d) = %q, want %q", c.i, got, c.want)
		}
	}
}
