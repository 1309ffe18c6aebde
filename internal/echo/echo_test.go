package echo

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// start runs a server on free loopback ports and stops it with the test.
func start(t *testing.T, change func(*Options)) (s *Server, web string, stop func() error) {
	t.Helper()
	opts := DefaultOptions()
	opts.HTTP, opts.TCP, opts.UDP = Addrs{"127.0.0.1:0"}, Addrs{"127.0.0.1:0"}, Addrs{"127.0.0.1:0", ":0"}
	opts.Drain = 50 * time.Millisecond
	opts.Identity = Identity{Pod: "web-1", Namespace: "shop", Node: "node-2"}
	if change != nil {
		change(&opts)
	}
	s, err := New(opts, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() error { stopped = true; cancel(); return <-done }
	t.Cleanup(func() {
		if !stopped {
			stop()
		}
	})
	http, _, _ := s.Addrs()
	return s, "http://" + http[0].String(), stop
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

func TestHTTPAnswers(t *testing.T) {
	_, web, _ := start(t, nil)
	address := strings.TrimPrefix(web, "http://")

	status, text := get(t, web+"/some/path")
	if want := "pod=web-1 node=node-2 address=" + address + " client=127.0.0.1:"; status != 200 || !strings.HasPrefix(text, want) || !strings.HasSuffix(text, "protocol=http\n") {
		t.Errorf("text: %d %q, want prefix %q", status, text, want)
	}
	_, text = get(t, web+"/p?format=json")
	var a Answer
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	if a.Pod != "web-1" || a.Namespace != "shop" || a.Node != "node-2" || a.Address != address || a.Method != "GET" || a.Path != "/p?format=json" || a.Host != address {
		t.Errorf("json: %+v", a)
	}
	if status, _ := get(t, web+"/?status=418"); status != 418 {
		t.Errorf("?status=418 answered %d", status)
	}
	r, err := http.Post(web+"/?format=json", "text/plain", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if err := json.NewDecoder(r.Body).Decode(&a); err != nil || a.Body != "hello" || a.Method != "POST" {
		t.Errorf("body: %+v, %v", a, err)
	}
}

func TestTCPAnswersAndEchoes(t *testing.T) {
	s, _, _ := start(t, nil)
	_, tcp, _ := s.Addrs()
	c, err := net.Dial("tcp", tcp[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if want := fmt.Sprintf("pod=web-1 node=node-2 address=%s client=%s protocol=tcp\n", tcp[0], c.LocalAddr()); err != nil || line != want {
		t.Fatalf("got %q, %v; want %q", line, err, want)
	}
	fmt.Fprint(c, "ping\n")
	if line, err := r.ReadString('\n'); err != nil || line != "ping\n" {
		t.Fatalf("echo: %q, %v", line, err)
	}
}

// UDP answers carry the line and the payload, and leave from the address that
// was asked, also when the socket is bound to none.
func TestUDPAnswers(t *testing.T) {
	s, _, _ := start(t, nil)
	_, _, udp := s.Addrs()
	wild := udp[1].(*net.UDPAddr).Port
	for _, to := range []string{udp[0].String(), fmt.Sprintf("127.0.0.9:%d", wild), fmt.Sprintf("[::1]:%d", wild)} {
		c, err := net.Dial("udp", to) // connected: only answers from "to" are let in
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		buf := make([]byte, 2048)
		var n int
		for try := 0; try < 10; try++ {
			fmt.Fprint(c, "ping")
			c.SetReadDeadline(time.Now().Add(3 * time.Second))
			if n, err = c.Read(buf); err == nil {
				break
			}
		}
		if want := fmt.Sprintf("pod=web-1 node=node-2 address=%s client=%s protocol=udp\nping", to, c.LocalAddr()); err != nil || string(buf[:n]) != want {
			t.Errorf("%s: got %q, %v; want %q", to, buf[:n], err, want)
		}
	}
}

func TestHealth(t *testing.T) {
	_, web, _ := start(t, func(o *Options) { o.SlowStart = time.Hour })
	expect := func(path string, want int) {
		t.Helper()
		if status, _ := get(t, web+path); status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
	}
	post := func(path string) {
		r, err := http.Post(web+path, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
	}
	expect("/livez", 200)
	expect("/healthz", 200)
	expect("/readyz", 503)
	post("/control/ready")
	expect("/readyz", 200)
	post("/control/unready")
	expect("/readyz", 503)
	expect("/livez", 200)
}

func TestFailuresAndDelay(t *testing.T) {
	s, web, _ := start(t, func(o *Options) { o.FailureRate = 1; o.Delay = 30 * time.Millisecond })
	began := time.Now()
	if status, _ := get(t, web); status != 500 {
		t.Errorf("HTTP answered %d, want 500", status)
	}
	if took := time.Since(began); took < 30*time.Millisecond {
		t.Errorf("answered after %v, before --delay", took)
	}
	_, tcp, _ := s.Addrs()
	c, err := net.Dial("tcp", tcp[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
		t.Errorf("TCP answered %q, %v; want a close without a word", b, err)
	}
}

// Told to stop, the server finishes what it has begun, and still takes
// connections while it drains.
func TestStopLosesNothing(t *testing.T) {
	s, web, stop := start(t, func(o *Options) { o.Drain = 2 * time.Second })
	_, tcp, _ := s.Addrs()
	slow := make(chan string, 1)
	go func() {
		_, text := get(t, web+"/?delay=300ms")
		slow <- text
	}()
	for s.served.Load() == 0 { // the slow request is under way
		time.Sleep(time.Millisecond)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	for !s.draining.Load() {
		time.Sleep(time.Millisecond)
	}
	if status, _ := get(t, web+"/readyz"); status != 503 {
		t.Errorf("/readyz while draining: %d", status)
	}
	if status, _ := get(t, web); status != 200 {
		t.Errorf("a new request while draining: %d", status)
	}
	c, err := net.Dial("tcp", tcp[0].String())
	if err != nil {
		t.Errorf("a new connection while draining: %v", err)
	} else {
		c.Close()
	}
	if text := <-slow; !strings.HasPrefix(text, "pod=web-1") {
		t.Errorf("the request under way got %q", text)
	}
	if err := <-stopped; err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestFlags(t *testing.T) {
	for in, want := range map[string]string{
		"8080": ":8080", "8080,81": ":8080,:81", "127.0.0.1:5": "127.0.0.1:5", "[::1]:5": "[::1]:5", "none": "", "": "",
	} {
		var a Addrs
		if err := a.Set(in); err != nil || a.String() != want {
			t.Errorf("%q: %q, %v; want %q", in, a, err, want)
		}
	}
	for _, in := range []string{"http", "1.2.3.4", "99999", "1:2:3"} {
		var a Addrs
		if err := a.Set(in); err == nil {
			t.Errorf("%q was taken as %q", in, a)
		}
	}
	for want, change := range map[string]func(*Options){
		"--failure-rate": func(o *Options) { o.FailureRate = 2 },
		"--delay":        func(o *Options) { o.Delay = -1 },
		"nothing":        func(o *Options) { o.HTTP, o.TCP, o.UDP = nil, nil, nil },
	} {
		o := DefaultOptions()
		change(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Validate: %v, want something about %s", err, want)
		}
	}
}

// The client understands both forms of the answer over TCP.
func TestGetTCP(t *testing.T) {
	for _, asJSON := range []bool{false, true} {
		s, _, _ := start(t, func(o *Options) { o.JSON = asJSON })
		_, tcp, _ := s.Addrs()
		var got []Answer
		tally := Get(t.Context(), GetOptions{URL: "tcp://" + tcp[0].String(), Count: 20, Workers: 4, Timeout: 30 * time.Second}, func(a Answer, err error) {
			if err != nil {
				t.Error(err)
			}
			got = append(got, a)
		})
		if tally.Failed > 0 || tally.Pods["web-1"] != 20 {
			t.Errorf("json %v: %+v", asJSON, tally)
		}
		if a := got[0]; a.Node != "node-2" || a.Address != tcp[0].String() || a.Protocol != "tcp" || a.Client == "" {
			t.Errorf("json %v: answer %+v", asJSON, a)
		}
	}
	refused := Get(t.Context(), GetOptions{URL: "tcp://127.0.0.1:1", Count: 1, Timeout: time.Second}, nil)
	if refused.Failed != 1 {
		t.Errorf("nobody there: %+v", refused)
	}
}
