package console

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestTableAligns(t *testing.T) {
	var b bytes.Buffer
	p := NewWriter(&b, false)
	p.Table("  ", []string{"NAME", "ADDRESS"}, [][]string{{"node-1", "172.30.0.11"}, {"ü", ""}, {"x"}})
	want := "  NAME     ADDRESS\n  node-1   172.30.0.11\n  ü        -\n  x        -\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestNoEscapesOffTerminal(t *testing.T) {
	var b bytes.Buffer
	p := NewWriter(&b, false)
	p.Start("API server").Done("at %s", "https://127.0.0.1:6443")
	p.Start("Nodes").Fail(errors.New("no root"))
	if strings.Contains(b.String(), "\x1b") {
		t.Errorf("escape sequence in %q", b.String())
	}
	for _, want := range []string{"✓ API server", "at https://127.0.0.1:6443", "✗ Nodes", "no root"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in %q", want, b.String())
		}
	}
	if n := strings.Count(b.String(), "\n"); n != 2 {
		t.Errorf("%d lines, want one a step", n)
	}
}

func TestTerminalRewritesTheLine(t *testing.T) {
	var b bytes.Buffer
	p := NewWriter(&b, true)
	s := p.Start("Nodes")
	if strings.Contains(b.String(), "\n") {
		t.Error("a step under way ends its line")
	}
	s.Done("3")
	if !strings.Contains(b.String(), "\r\x1b[K") {
		t.Error("the line under way is not wiped")
	}
}
