package nft

import (
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var serialSuffix = regexp.MustCompile(`-g\d+$`)

// plainName takes a generation's number off a set's name.
func plainName(s string) string { return serialSuffix.ReplaceAllString(s, "") }

// byPackets are the sets that packets fill: what is in them is no matter of
// ours.
var byPackets = []string{setAffinity, setHairpin, setPodSeen}

// readBack describes everything in the programmer's table: a line per chain,
// rule, set and element. Lines of the same meaning are the same, whatever the
// serial of a generation and the size of a set.
func readBack(t testing.TB, p *Programmer) map[string]bool {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.dial(); err != nil {
		t.Fatal(err)
	}
	lines := map[string]bool{}
	is, err := p.read()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range is.chains {
		lines[fmt.Sprintf("chain %s %s %d %d", c.name, c.kind, c.hook, c.priority)] = true
	}
	for name, s := range is.sets {
		s.name, s.size, s.count = plainName(name), 0, 0
		lines[fmt.Sprintf("set %+v", s)] = true
		if slices.ContainsFunc(byPackets, func(b string) bool { return strings.HasPrefix(name, b) }) {
			continue
		}
		err := p.elements(name, func() {}, func(e element) error {
			lines[fmt.Sprintf("element %s %x %x %s %d", s.name, e.key, e.data, e.verdict, e.flags)] = true
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	numbers := map[string]int{}
	rules := map[string]bool{}
	err = p.stableDump(unix.NFT_MSG_GETRULE, func(w *wire) { w.str(unix.NFTA_RULE_TABLE, p.table) }, func() {
		clear(numbers)
		clear(rules)
	}, func(b []byte) error {
		chain := attrStr(b, unix.NFTA_RULE_CHAIN)
		numbers[chain]++
		rules[fmt.Sprintf("rule %s %d%s", chain, numbers[chain], describeRule(attr(b, unix.NFTA_RULE_EXPRESSIONS)))] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(lines, rules)
	return lines
}

func describeRule(exprs []byte) string {
	var out strings.Builder
	attrs(exprs, func(_ uint16, e []byte) {
		name := attrStr(e, unix.NFTA_EXPR_NAME)
		fmt.Fprintf(&out, " | %s", name)
		attrs(attr(e, unix.NFTA_EXPR_DATA), func(typ uint16, v []byte) {
			if (name == "lookup" || name == "dynset") && typ == unix.NFTA_LOOKUP_SET {
				fmt.Fprintf(&out, " @%s", plainName(strings.TrimRight(string(v), "\x00")))
				return
			}
			fmt.Fprintf(&out, " %d:%s", typ, hex.EncodeToString(v))
		})
	})
	return out.String()
}

// spareLines are the lines of classes that p keeps although no frontend has
// them.
func spareLines(p *Programmer) func(line string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	var chains, elements []string
	for i, f := range families {
		for c, n := range p.classes[i] {
			if n == 0 {
				chains = append(chains, c.chain(p, f), c.inner(p, f))
				elements = append(elements, fmt.Sprintf("element %s %x", p.name(setClasses, f), c.key()))
			}
		}
	}
	return func(line string) bool {
		if f := strings.Fields(line); (f[0] == "chain" || f[0] == "rule") && slices.Contains(chains, f[1]) {
			return true
		}
		return slices.ContainsFunc(elements, func(e string) bool { return strings.HasPrefix(line, e) })
	}
}

// sameTable compares what two programmers' tables are.
func sameTable(t testing.TB, what string, got, want *Programmer) {
	t.Helper()
	spare := spareLines(got)
	is, shall := readBack(t, got), readBack(t, want)
	for line := range is {
		if !shall[line] && !spare(line) {
			t.Errorf("%s: too much in the kernel: %s", what, line)
		}
	}
	for line := range shall {
		if !is[line] {
			t.Errorf("%s: missing in the kernel: %s", what, line)
		}
	}
}
