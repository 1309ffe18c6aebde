// Package console writes what a person reads while a command works: steps
// with a mark and the time they took, tables that align, and colour only where
// a terminal shows it.
package console

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// Printer writes to one stream. It is safe for concurrent use.
type Printer struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
}

// New prints to a file, with colour and live progress if it is a terminal and
// NO_COLOR is not set (no-color.org).
func New(f *os.File) *Printer {
	return NewWriter(f, term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "")
}

// NewWriter prints to any writer; terminal says whether escape sequences are
// understood at its other end.
func NewWriter(w io.Writer, terminal bool) *Printer {
	return &Printer{w: w, terminal: terminal}
}

// Terminal says whether the printer uses colour and live progress.
func (p *Printer) Terminal() bool { return p.terminal }

// Printf writes formatted text as it is.
func (p *Printer) Printf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, format, args...)
}

// Bold, Green, Red and Faint dress text for a terminal, and leave it alone
// elsewhere.
func (p *Printer) Bold(s string) string  { return p.dress("1", s) }
func (p *Printer) Green(s string) string { return p.dress("32", s) }
func (p *Printer) Red(s string) string   { return p.dress("31", s) }
func (p *Printer) Faint(s string) string { return p.dress("2", s) }

func (p *Printer) dress(code, s string) string {
	if !p.terminal || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// Step is a piece of work under way.
type Step struct {
	p     *Printer
	name  string
	start time.Time
}

// stepWidth is the column at which a step's detail begins.
const stepWidth = 16

// Start announces a step. A terminal shows it at once; elsewhere its one line
// appears when it ends.
func (p *Printer) Start(name string) *Step {
	s := &Step{p: p, name: name, start: time.Now()}
	if p.terminal {
		p.Printf("  %s %s", p.Faint("…"), name)
	}
	return s
}

// Done ends a step well; detail says what came of it.
func (s *Step) Done(format string, args ...any) {
	s.end(s.p.Green("✓"), fmt.Sprintf(format, args...))
}

// Fail ends a step that did not work.
func (s *Step) Fail(err error) { s.end(s.p.Red("✗"), err.Error()) }

func (s *Step) end(mark, detail string) {
	if s.p.terminal {
		s.p.Printf("\r\x1b[K")
	}
	took := s.p.Faint(fmt.Sprintf("%.1fs", time.Since(s.start).Seconds()))
	s.p.Printf("  %s %s %s  %s\n", mark, Pad(s.name, stepWidth), detail, took)
}

// Pad fills a text up with blanks to a width in characters.
func Pad(s string, width int) string {
	if n := width - utf8.RuneCountInString(s); n > 0 {
		return s + strings.Repeat(" ", n)
	}
	return s
}

// Table writes rows in aligned columns under a header, each line after indent.
// Trailing blanks are left out, and an empty cell shows as "-".
func (p *Printer) Table(indent string, header []string, rows [][]string) {
	width := make([]int, len(header))
	for i, h := range header {
		width[i] = utf8.RuneCountInString(h)
	}
	for _, r := range rows {
		for i := range header {
			width[i] = max(width[i], utf8.RuneCountInString(cell(r, i)))
		}
	}
	line := func(get func(int) string) string {
		var b strings.Builder
		for i := range header {
			if i > 0 {
				b.WriteString("   ")
			}
			b.WriteString(Pad(get(i), width[i]))
		}
		return strings.TrimRight(b.String(), " ")
	}
	p.Printf("%s%s\n", indent, p.Bold(line(func(i int) string { return header[i] })))
	for _, r := range rows {
		p.Printf("%s%s\n", indent, line(func(i int) string { return cell(r, i) }))
	}
}

func cell(row []string, i int) string {
	if i >= len(row) || row[i] == "" {
		return "-"
	}
	return row[i]
}
