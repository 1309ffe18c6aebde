package nft

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/proxy/state"
	"fairway.dev/fairway/internal/testenv"
)

// lab is a node with three Pods and a client on another network:
//
//	client 192.0.2.1 ── 192.0.2.254 node 10.244.i.1 ── 10.244.i.2 pod i
//	client 2001:db8::1          ::fe      fd00:244:i::1    fd00:244:i::2
//
// Every Pod serves TCP and UDP on port 8080, and so does the node itself, on
// port 9090. An answer is the server's name and the client's address it saw;
// over TCP, after that, what the client says.
type lab struct {
	t            testing.TB
	node, client *testenv.Host
	pods         []*testenv.Host
	p            *Programmer
}

const labPods = 3

var (
	podCIDRs     = prefixes("10.244.0.0/16", "fd00:244::/32")
	serviceCIDRs = prefixes("10.96.0.0/16", "fd00:96::/112")
	everywhere   = prefixes("0.0.0.0/0", "::/0")
	labFacts     = state.NodeFacts{
		NodePortAddrs: everywhere,
		PodNetwork:    state.PodNetwork{CIDRs: podCIDRs},
		ServiceCIDRs:  serviceCIDRs,
	}
)

func prefixes(s ...string) (out []netip.Prefix) {
	for _, x := range s {
		out = append(out, netip.MustParsePrefix(x))
	}
	return out
}

func newLab(t testing.TB) *lab {
	t.Helper()
	testenv.RequireRoot(t)
	l := &lab{t: t, node: testenv.NewHost(t, "node"), client: testenv.NewHost(t, "client")}
	l.client.Connect(t, "eth0", l.node, "ext0")
	l.client.AddAddr(t, "eth0", "192.0.2.1/24")
	l.client.AddAddr(t, "eth0", "2001:db8::1/64")
	l.node.AddAddr(t, "ext0", "192.0.2.254/24")
	l.node.AddAddr(t, "ext0", "2001:db8::fe/64")
	l.client.AddRoute(t, "default4", "192.0.2.254")
	l.client.AddRoute(t, "default6", "2001:db8::fe")
	// The node has a way out, as nodes do: what nothing stops goes there.
	l.node.AddRoute(t, "default4", "192.0.2.1")
	l.node.AddRoute(t, "default6", "2001:db8::1")
	for i := 1; i <= labPods; i++ {
		pod := testenv.NewHost(t, fmt.Sprintf("pod%d", i))
		l.pods = append(l.pods, pod)
		link := fmt.Sprintf("pod%d", i)
		pod.Connect(t, "eth0", l.node, link)
		pod.AddAddr(t, "eth0", fmt.Sprintf("10.244.%d.2/24", i))
		pod.AddAddr(t, "eth0", fmt.Sprintf("fd00:244:%d::2/64", i))
		l.node.AddAddr(t, link, fmt.Sprintf("10.244.%d.1/24", i))
		l.node.AddAddr(t, link, fmt.Sprintf("fd00:244:%d::1/64", i))
		pod.AddRoute(t, "default4", fmt.Sprintf("10.244.%d.1", i))
		pod.AddRoute(t, "default6", fmt.Sprintf("fd00:244:%d::1", i))
		l.serve(pod, link, "8080")
	}
	l.serve(l.node, "node", "9090")
	l.settle()
	l.p = l.programmer(Config{})
	l.ok(l.p.Configure(context.Background(), labFacts))
	return l
}

// settle waits until the network works: a new link's IPv6 addresses are not
// usable, nor its neighbours known, for some moments.
func (l *lab) settle() {
	l.t.Helper()
	deadline := time.Now().Add(patience)
	retry := func(what string, ready func() error) {
		l.t.Helper()
		for err := ready(); err != nil; err = ready() {
			if time.Now().After(deadline) {
				l.t.Fatalf("the lab is not ready: %s: %v", what, err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	for _, h := range append([]*testenv.Host{l.node, l.client}, l.pods...) {
		retry(h.Name, func() error {
			addrs, err := h.NL.AddrList(nil, netlink.FAMILY_V6)
			for _, a := range addrs {
				if a.Flags&unix.IFA_F_TENTATIVE != 0 {
					return fmt.Errorf("address %s is tentative", a.IP)
				}
			}
			return err
		})
	}
	for i := range l.pods {
		for _, address := range []string{fmt.Sprintf("10.244.%d.2:8080", i+1), fmt.Sprintf("[fd00:244:%d::2]:8080", i+1)} {
			for _, h := range []*testenv.Host{l.node, l.client} {
				retry(h.Name+" to "+address, func() error {
					_, _, err := l.askWithin(h, state.TCP, address, impatience)
					return err
				})
			}
		}
	}
}

// removeAddr takes an address off the node.
func (l *lab) removeAddr(ip netip.Addr) {
	l.t.Helper()
	links, err := l.node.NL.LinkList()
	l.ok(err)
	for _, link := range links {
		addrs, err := l.node.NL.AddrList(link, netlink.FAMILY_ALL)
		l.ok(err)
		for _, a := range addrs {
			if got, _ := netip.AddrFromSlice(a.IP); got.Unmap() == ip {
				l.ok(l.node.NL.AddrDel(link, &a))
			}
		}
	}
}

// programmer makes one for the node, closed when the test ends.
func (l *lab) programmer(cfg Config) *Programmer {
	l.t.Helper()
	cfg.NetNS = l.node.NS
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(l.t.Output(), nil))
	}
	p, err := New(cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { p.Close() })
	return p
}

// serve answers every TCP connection and UDP packet with the host's name and
// the address it comes from, as that host sees it.
func (l *lab) serve(h *testenv.Host, name, port string) {
	for _, address := range []string{"0.0.0.0:" + port, "[::]:" + port} {
		v := "4"
		if strings.HasPrefix(address, "[") {
			v = "6"
		}
		ln := h.Listen(l.t, "tcp"+v, address)
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprintf(c, "%s %s\n", name, host)
				go func() { io.Copy(c, c); c.Close() }()
			}
		}()
		pc := h.ListenPacket(l.t, "udp"+v, address)
		go func() {
			buf := make([]byte, 100)
			for {
				_, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(from.String())
				pc.WriteTo([]byte(name+" "+host+"\n"), from)
			}
		}()
	}
}

// with is the lab for a subtest.
func (l *lab) with(t *testing.T) *lab {
	c := *l
	c.t = t
	return &c
}

func (l *lab) ok(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) replace(fs ...*state.Frontend) {
	l.t.Helper()
	l.ok(l.p.Replace(context.Background(), slices.Values(fs)))
}

func (l *lab) apply(set []*state.Frontend, remove ...state.Key) {
	l.t.Helper()
	l.ok(l.p.Apply(context.Background(), state.Diff{Set: set, Remove: remove}))
}

// patience is how long a packet may take on a busy machine; impatience is how
// long a test waits for an answer that must not come.
const (
	patience   = 10 * time.Second
	impatience = 500 * time.Millisecond
)

// ask connects from a host and returns who answered and which client address
// it saw.
func (l *lab) ask(h *testenv.Host, proto state.Protocol, address string) (server, source string, err error) {
	return l.askWithin(h, proto, address, patience)
}

func (l *lab) askWithin(h *testenv.Host, proto state.Protocol, address string, wait time.Duration) (server, source string, err error) {
	network := "tcp"
	if proto == state.UDP {
		network = "udp"
	}
	c, err := h.Dial(network, address, wait)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0) // leave no TIME_WAIT behind
	}
	c.SetDeadline(time.Now().Add(wait))
	if proto == state.UDP {
		if _, err := c.Write([]byte("?")); err != nil {
			return "", "", err
		}
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", "", err
	}
	_, err = fmt.Sscan(line, &server, &source)
	return server, source, err
}

// answers asserts who answers and, unless source is "", the address it saw.
func (l *lab) answers(h *testenv.Host, proto state.Protocol, address, server, source string) {
	l.t.Helper()
	got, src, err := l.ask(h, proto, address)
	if err != nil {
		l.t.Errorf("from %s to %s/%d: %v, want %s to answer", h.Name, address, proto, err, server)
		return
	}
	if server != "" && got != server || source != "" && src != source {
		l.t.Errorf("from %s to %s/%d: answered by %s, who saw %s; want %q and %q", h.Name, address, proto, got, src, server, source)
	}
}

// refused asserts that the client is told at once that nobody is there. What
// the kernel tells a UDP socket of the refusing node itself is EPERM.
func (l *lab) refused(h *testenv.Host, proto state.Protocol, address string) {
	l.t.Helper()
	start := time.Now()
	server, _, err := l.ask(h, proto, address)
	if !errors.Is(err, syscall.ECONNREFUSED) && !(proto == state.UDP && errors.Is(err, syscall.EPERM)) {
		l.t.Errorf("from %s to %s/%d: got %q, %v; want connection refused", h.Name, address, proto, server, err)
	} else if d := time.Since(start); d > 4*time.Second {
		l.t.Errorf("from %s to %s/%d: refused after %v, want at once", h.Name, address, proto, d)
	}
}

// silent asserts that nothing comes back.
func (l *lab) silent(h *testenv.Host, proto state.Protocol, address string) {
	l.t.Helper()
	server, _, err := l.askWithin(h, proto, address, impatience)
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		l.t.Errorf("from %s to %s/%d: got %q, %v; want silence", h.Name, address, proto, server, err)
	}
}

// key parses "10.96.0.1:80" or "[fd00::1]:80"; a node port is ":30080" with
// the address 0.0.0.0 or [::].
func key(proto state.Protocol, address string) state.Key {
	ap := netip.MustParseAddrPort(address)
	return state.Key{Addr: ap.Addr(), Port: ap.Port(), Proto: proto}
}

func backendsOf(addresses ...string) (bs []state.Backend) {
	for _, a := range addresses {
		bs = append(bs, state.Backend{Addr: netip.MustParseAddrPort(a)})
	}
	return bs
}

// podBackends are the Pods' servers of the family of a key.
func podBackends(k state.Key, pods ...int) (bs []state.Backend) {
	for _, i := range pods {
		a := fmt.Sprintf("10.244.%d.2:8080", i)
		if k.Addr.Is6() {
			a = fmt.Sprintf("[fd00:244:%d::2]:8080", i)
		}
		bs = append(bs, backendsOf(a)...)
	}
	return bs
}
