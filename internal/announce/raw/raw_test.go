package raw

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fake is a socket whose reads return what the test sends.
type fake struct {
	reads  chan error // nil: a frame
	once   sync.Once
	closed chan struct{}
}

func (f *fake) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case err := <-f.reads:
		return copy(b, "frame"), nil, err
	case <-f.closed:
		return 0, nil, net.ErrClosed
	}
}

func (f *fake) WriteTo(b []byte, _ net.Addr) (int, error) { return len(b), nil }
func (f *fake) Close() error                              { f.once.Do(func() { close(f.closed) }); return nil }

func TestSocketOutlivesErrors(t *testing.T) {
	f := &fake{reads: make(chan error), closed: make(chan struct{})}
	frames, broken := make(chan string, 1), make(chan error, 1)
	s := serve(f, Config{Broken: func(err error) { broken <- err }, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))},
		func(_ *Socket, b []byte) { frames <- string(b) })
	for _, err := range []error{unix.ENETDOWN, unix.ENOBUFS, unix.EIO, errors.New("never heard of")} {
		for range maxErrors - 1 {
			f.reads <- err
		}
		f.reads <- nil
		if got := <-frames; got != "frame" {
			t.Errorf("after %v: %q", err, got)
		}
	}
	for range 3 * maxErrors {
		f.reads <- unix.ENETDOWN // a link may be down for as long as it likes
	}
	select {
	case err := <-broken:
		t.Fatalf("given up: %v", err)
	default:
	}
	for range maxErrors {
		f.reads <- unix.EIO
	}
	select {
	case err := <-broken:
		if !errors.Is(err, unix.EIO) {
			t.Errorf("broken by %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("a socket that cannot be read is not reported")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestCloseIsNoFailure closes a socket whose read then fails in any way.
func TestCloseIsNoFailure(t *testing.T) {
	f := &fake{reads: make(chan error, 1), closed: make(chan struct{})}
	broken := make(chan error, 1)
	s := serve(f, Config{Broken: func(err error) { broken <- err }, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}, func(*Socket, []byte) {})
	go func() {
		<-f.closed
		for range 2 * maxErrors {
			select {
			case f.reads <- unix.EBADF:
			default:
			}
		}
	}()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-broken:
		t.Errorf("given up: %v", err)
	default:
	}
}
