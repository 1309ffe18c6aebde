package process

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxLine    = 16 << 10 // longer lines are split, as container runtimes do
	maxLogSize = 10 << 20 // bytes; then the file is put aside
	keepLogs   = 4        // files put aside
)

// output carries what a container writes from its pipes to its log, in the
// format of the CRI ("<RFC 3339 time> stdout F line"), and to whoever is
// attached.
type output struct {
	log     *logFile
	streams []*stream
	wg      sync.WaitGroup

	mu       sync.Mutex
	attached map[*attached]bool
}

type attached struct {
	out, err io.Writer
}

// stream is one pipe, read without a thread of its own.
type stream struct {
	name string // "stdout" or "stderr"
	file *os.File
	rest []byte // the beginning of a line whose end has not come
}

// buffers are borrowed only while there is something to read: a thousand quiet
// containers hold none.
var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

func newOutput(logPath string) (*output, error) {
	l, err := openLog(logPath)
	if err != nil {
		return nil, err
	}
	return &output{log: l, attached: map[*attached]bool{}}, nil
}

// add begins to read a pipe or terminal.
func (o *output) add(name string, f *os.File) {
	s := &stream{name: name, file: f}
	o.streams = append(o.streams, s)
	o.wg.Add(1)
	go func() {
		defer o.wg.Done()
		o.pump(s)
	}()
}

func (o *output) pump(s *stream) {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return
	}
	for {
		var n int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			buf := buffers.Get().(*[]byte)
			defer buffers.Put(buf)
			for {
				n, rerr = unix.Read(int(fd), *buf)
				if !errors.Is(rerr, unix.EINTR) {
					break
				}
			}
			if errors.Is(rerr, unix.EAGAIN) {
				return false
			}
			if n > 0 {
				o.write(s, (*buf)[:n])
			}
			return true
		})
		if err != nil || rerr != nil || n <= 0 { // closed, ended, or a terminal without a process
			if len(s.rest) > 0 {
				o.log.line(s.name, s.rest, false)
			}
			return
		}
	}
}

func (o *output) write(s *stream, p []byte) {
	o.mu.Lock()
	for a := range o.attached {
		w := a.out
		if s.name == "stderr" {
			w = a.err
		}
		if w != nil {
			w.Write(p) //nolint:errcheck // it goes when its client does
		}
	}
	o.mu.Unlock()
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			s.rest = append(s.rest, p...)
			for len(s.rest) >= maxLine {
				o.log.line(s.name, s.rest[:maxLine], true)
				s.rest = append([]byte(nil), s.rest[maxLine:]...)
			}
			return
		}
		line := p[:i]
		if len(s.rest) > 0 {
			line = append(s.rest, line...)
			s.rest = nil
		}
		for len(line) > maxLine {
			o.log.line(s.name, line[:maxLine], true)
			line = line[maxLine:]
		}
		o.log.line(s.name, line, false)
		p = p[i+1:]
	}
}

func (o *output) attach(stdout, stderr io.Writer) (detach func()) {
	a := &attached{stdout, stderr}
	o.mu.Lock()
	o.attached[a] = true
	o.mu.Unlock()
	return func() {
		o.mu.Lock()
		delete(o.attached, a)
		o.mu.Unlock()
	}
}

// finish reads what is left, waiting no longer than limit for somebody who
// still holds the pipe open, and closes everything.
func (o *output) finish(limit time.Duration) {
	for _, s := range o.streams {
		s.file.SetReadDeadline(time.Now().Add(limit)) //nolint:errcheck // a file that cannot be polled ends by itself
	}
	o.wg.Wait()
	o.close()
}

// close stops reading and leaves the rest in the pipe.
func (o *output) close() {
	for _, s := range o.streams {
		s.file.Close()
	}
	o.wg.Wait()
	o.log.close()
}

// logFile is a log that is put aside when it has grown too large.
type logFile struct {
	mu   sync.Mutex
	path string
	file *os.File
	size int64
	buf  []byte
}

func openLog(path string) (*logFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	l := &logFile{path: path, file: f}
	if fi, err := f.Stat(); err == nil {
		l.size = fi.Size()
	}
	return l, nil
}

func (l *logFile) line(stream string, p []byte, partial bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return
	}
	b := time.Now().UTC().AppendFormat(l.buf[:0], "2006-01-02T15:04:05.000000000Z07:00")
	b = append(append(b, ' '), stream...)
	if partial {
		b = append(b, " P "...)
	} else {
		b = append(b, " F "...)
	}
	b = append(append(b, p...), '\n')
	n, _ := l.file.Write(b) // a full disk loses lines, not containers
	l.size += int64(n)
	if cap(b) <= 1<<10 {
		l.buf = b
	}
	if l.size >= maxLogSize {
		l.rotate()
	}
}

func (l *logFile) rotate() {
	aside := l.path + "." + time.Now().UTC().Format("20060102-150405.000000")
	if err := os.Rename(l.path, aside); err != nil {
		return
	}
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return // go on in the one put aside
	}
	l.file.Close()
	l.file, l.size = f, 0
	old, _ := filepath.Glob(l.path + ".*") // sorted by time
	for i := 0; i < len(old)-keepLogs; i++ {
		os.Remove(old[i]) //nolint:errcheck
	}
}

func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
}
