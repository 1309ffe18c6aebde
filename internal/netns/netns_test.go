package netns_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"fairway.dev/fairway/internal/netns"
	"fairway.dev/fairway/internal/testenv"
)

func TestCreateOpenDelete(t *testing.T) {
	testenv.RequireRoot(t)
	name := testenv.Name("netns")
	ns, err := netns.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	defer netns.Delete(name)

	if _, err := netns.Create(name); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second Create: got %v, want fs.ErrExist", err)
	}
	names, err := netns.List(name)
	if err != nil || !slices.Contains(names, name) {
		t.Errorf("List: got %v, %v, want it to contain %s", names, err, name)
	}
	if err := netns.Delete(name); err != nil {
		t.Errorf("Delete: %v", err)
	}
	if err := netns.Delete(name); err != nil {
		t.Errorf("second Delete: %v, want no error", err)
	}
	if _, err := netns.Open(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open after Delete: got %v, want fs.ErrNotExist", err)
	}
}

func TestBadNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b"} {
		if _, err := netns.Create(name); err == nil {
			t.Errorf("Create(%q) succeeded", name)
		}
		if err := netns.Delete(name); err == nil {
			t.Errorf("Delete(%q) succeeded", name)
		}
	}
}

// Do must not leak the namespace into other goroutines, however many run.
func TestDoStaysInside(t *testing.T) {
	testenv.RequireRoot(t)
	host := testenv.NewHost(t, "inside")
	before := links(t)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			err := host.NS.Do(func() error {
				if got := links(t); len(got) != 1 || got[0] != "lo" {
					t.Errorf("inside: links %v, want only lo", got)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			if got := links(t); !slices.Equal(got, before) {
				t.Errorf("outside after Do: links %v, want %v", got, before)
			}
		})
	}
	wg.Wait()
}

func TestListenAndDial(t *testing.T) {
	testenv.RequireRoot(t)
	host := testenv.NewHost(t, "listen")
	ctx := context.Background()
	l, err := host.NS.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := host.NS.DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		t.Fatalf("dial from inside: %v", err)
	}
	c.Close()
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("the listener answers outside its namespace")
	}
	if _, err := host.NS.DialContext(ctx, "tcp", "localhost:80"); err == nil {
		t.Error("dial to a host name succeeded, want a refusal")
	}
}

func links(t *testing.T) []string {
	// /proc/thread-self shows the calling thread's namespace.
	b, err := os.ReadFile("/proc/thread-self/net/dev")
	if err != nil {
		t.Error(err)
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			names = append(names, strings.TrimSpace(name))
		}
	}
	return names
}
