package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// difference is one kind of difference: how often it was seen, and where first.
type difference struct {
	count   int
	about   string
	what    string
	types   map[string]bool
	example string
	known   *exception
}

// differences collects them.
type differences struct {
	mu     sync.Mutex
	byKind map[string]*difference
	asked  int
}

// exception is a difference that is meant to be.
type exception struct {
	// kind matches what the question is about and its type: "ClusterIP: port A".
	kind *regexp.Regexp
	// what matches how the answers differ, as told makes it; nil for anything.
	what *regexp.Regexp
	// why is the reason, for the report.
	why string
}

// compare notes how Fairway's answer differs from CoreDNS's.
func (d *differences) compare(q question, here, there *dns.Msg) {
	what := told(q, read(here), read(there))
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	typ := dns.TypeToString[q.typ]
	for _, w := range what {
		e := lookupKnown(q.kind+" "+typ, w)
		k := fmt.Sprintf("%s\n%s\n%p", q.kind, w, e)
		if d.byKind[k] == nil {
			d.byKind[k] = &difference{about: q.kind, what: w, known: e, types: map[string]bool{},
				example: fmt.Sprintf("%v\n    fairway: %s\n    coredns: %s", q, oneLine(here), oneLine(there))}
		}
		d.byKind[k].count++
		d.byKind[k].types[typ] = true
	}
}

func lookupKnown(about, what string) *exception {
	for i := range known {
		if e := &known[i]; e.kind.MatchString(about) && (e.what == nil || e.what.MatchString(what)) {
			return e
		}
	}
	return nil
}

func oneLine(m *dns.Msg) string {
	s := read(m)
	out := s.rcode
	for _, f := range []struct {
		on   bool
		name string
	}{{s.aa, "aa"}, {s.tc, "tc"}, {s.ra, "ra"}, {s.edns, "edns"}} {
		if f.on {
			out += " " + f.name
		}
	}
	for _, p := range []struct {
		name string
		list []string
	}{{"answer", s.answer}, {"authority", s.authority}, {"additional", s.add}} {
		if len(p.list) > 4 {
			p.list = append(slices.Clone(p.list[:4]), fmt.Sprintf("and %d more", len(p.list)-4))
		}
		if len(p.list) > 0 {
			out += " | " + p.name + ": " + strings.Join(p.list, "; ")
		}
	}
	return out
}

// told says how two answers differ, in words that are the same for all
// questions with the same difference.
func told(q question, here, there said) (out []string) {
	if here.rcode != there.rcode {
		return []string{fmt.Sprintf("rcode %s, not %s", here.rcode, there.rcode)}
	}
	flag := func(name string, here, there bool) {
		if here != there {
			out = append(out, fmt.Sprintf("flag %s %v, not %v", name, here, there))
		}
	}
	flag("aa", here.aa, there.aa)
	flag("tc", here.tc, there.tc)
	flag("ra", here.ra, there.ra)
	flag("edns", here.edns, there.edns)
	flag("rd", here.rd, there.rd)
	flag("cd", here.cd, there.cd)
	flag("ad", here.ad, there.ad)
	flag("a record twice", here.twice, there.twice)
	if here.tc || there.tc {
		return out // what fits is not the same for both
	}
	section := func(name string, here, there []string) {
		if a, b := only(here, there), only(there, here); a+b != "" {
			out = append(out, fmt.Sprintf("%s: only here [%s], only there [%s]", name, a, b))
		}
	}
	section("answer", here.answer, there.answer)
	if !slices.Equal(here.weights, there.weights) {
		out = append(out, "weights")
	}
	section("authority", here.authority, there.authority)
	if len(here.add) > 0 && len(there.add) > 0 {
		if q.how != overTCP { // there may be no room for all
			there.add = slices.DeleteFunc(there.add, func(r string) bool { return !anyLetters(here.add, r) })
		}
		section("additional", here.add, there.add)
	}
	return out
}

// anyLetters reports whether a list has a record, whatever the case of its letters.
func anyLetters(list []string, record string) bool {
	return slices.ContainsFunc(list, func(o string) bool { return strings.EqualFold(o, record) })
}

// only says of which types there are records in a that b has not, and whether
// it is just their time to live or the case of their letters that b has otherwise.
func only(a, b []string) string {
	types := map[string]bool{}
	for _, r := range a {
		if slices.Contains(b, r) {
			continue
		}
		f := strings.Fields(r)
		typ := f[3]
		same := func(drop ...int) bool {
			return slices.ContainsFunc(b, func(o string) bool {
				g := strings.Fields(o)
				if len(g) != len(f) {
					return false
				}
				for i := range f {
					if f[i] != g[i] && !slices.Contains(drop, i) {
						return false
					}
				}
				return true
			})
		}
		switch {
		case same(1):
			typ += " ttl"
		case anyLetters(b, r):
			typ += " letters"
		}
		types[typ] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(types)), ", ")
}

// report prints each kind of difference once, and fails for those nobody knows.
func (d *differences) report() error {
	seen := map[*exception]int{}
	unknown := 0
	for _, k := range slices.Sorted(maps.Keys(d.byKind)) {
		x := d.byKind[k]
		if x.known != nil {
			seen[x.known] += x.count
			continue
		}
		unknown++
		fmt.Printf("\n%s: %s (%d times, %s), such as\n    %s\n", x.about, x.what, x.count,
			strings.Join(slices.Sorted(maps.Keys(x.types)), " "), x.example)
	}
	fmt.Printf("\n%d questions. Known differences:\n", d.asked)
	for i := range known {
		fmt.Printf("%8d  %s\n", seen[&known[i]], known[i].why)
	}
	if unknown > 0 {
		return fmt.Errorf("%d kinds of differences that are not known", unknown)
	}
	return nil
}
