package apiserver

import (
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
)

func TestOptionsSayWhatIsWrong(t *testing.T) {
	cidrs := func(s ...string) (out []netip.Prefix) {
		for _, c := range s {
			out = append(out, netip.MustParsePrefix(c))
		}
		return out
	}
	for name, tc := range map[string]struct {
		edit func(*Options)
		want string // part of the error; empty: none
	}{
		"defaults":             {func(o *Options) {}, ""},
		"no data directory":    {func(o *Options) { o.DataDir = "" }, "data directory"},
		"listen without port":  {func(o *Options) { o.Listen = []string{"127.0.0.1"} }, `"127.0.0.1": want IP:PORT`},
		"listen on a name":     {func(o *Options) { o.Listen = []string{"localhost:6443"} }, "want IP:PORT"},
		"single stack 6":       {func(o *Options) { o.ServiceCIDRs = cidrs("fd00::/112") }, ""},
		"three ranges":         {func(o *Options) { o.ServiceCIDRs = cidrs("10.0.0.0/24", "fd00::/112", "10.1.0.0/24") }, "at most two"},
		"one family twice":     {func(o *Options) { o.ServiceCIDRs = cidrs("10.0.0.0/24", "10.1.0.0/24") }, "one IP family"},
		"host bits":            {func(o *Options) { o.ServiceCIDRs = cidrs("10.0.0.1/24") }, "did you mean 10.0.0.0/24"},
		"too small":            {func(o *Options) { o.ServiceCIDRs = cidrs("10.0.0.0/30") }, "fewer than 8"},
		"ports upside down":    {func(o *Options) { o.NodePorts = PortRange{2, 1} }, "node port range 2-1"},
		"advertise loopback":   {func(o *Options) { o.AdvertiseAddress = netip.MustParseAddr("127.0.0.1") }, "cannot reach"},
		"advertise link-local": {func(o *Options) { o.AdvertiseAddress = netip.MustParseAddr("fe80::1") }, "cannot reach"},
	} {
		t.Run(name, func(t *testing.T) {
			o := Options{DataDir: t.TempDir()}
			tc.edit(&o)
			_, err := o.withDefaults()
			switch {
			case tc.want == "" && err != nil:
				t.Fatalf("error %v, want none", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Fatalf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestParsePortRange(t *testing.T) {
	for in, want := range map[string]PortRange{
		"30000-32767": {30000, 32767},
		"1-65535":     {1, 65535},
		"80-80":       {80, 80},
	} {
		if got, err := ParsePortRange(in); err != nil || got != want || got.String() != in {
			t.Errorf("%s: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "80", "0-80", "90-80", "1-65536", "a-b", "1-2-3"} {
		if got, err := ParsePortRange(in); err == nil {
			t.Errorf("%q: %v, want an error", in, got)
		}
	}
}

func TestDefaultAdvertise(t *testing.T) {
	four, six := netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00::/112")
	listening := []netip.AddrPort{
		netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("[fd01::1]:1"), netip.MustParseAddrPort("172.30.0.1:1"),
	}
	if got := defaultAdvertise(listening, []netip.Prefix{four, six}); got.String() != "172.30.0.1" {
		t.Errorf("IPv4 first: %v", got)
	}
	if got := defaultAdvertise(listening, []netip.Prefix{six}); got.String() != "fd01::1" {
		t.Errorf("IPv6 only: %v", got)
	}
}

func TestListen(t *testing.T) {
	m, err := listen([]string{"127.0.0.1:0", "127.0.0.2:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	addrs := m.addrs()
	if addrs[0].Port() != addrs[1].Port() {
		t.Errorf("ports differ: %v", addrs)
	}
	if err := m.add("127.0.0.3:0"); err != nil {
		t.Fatalf("a third address: %v", err)
	}
	for _, a := range m.addrs() {
		c, err := net.Dial("tcp", a.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, err := m.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if s.LocalAddr().String() != a.String() {
			t.Errorf("accepted on %v, dialled %v", s.LocalAddr(), a)
		}
	}
	if _, err := listen([]string{addrs[0].String()}); err == nil || !strings.Contains(err.Error(), "another program has that port") {
		t.Errorf("taken port: %v", err)
	}
	if _, err := listen([]string{"192.0.2.77:0"}); err == nil || !strings.Contains(err.Error(), "no such address") {
		t.Errorf("foreign address: %v", err)
	}
	m.Close()
	if _, err := m.Accept(); err == nil {
		t.Error("accepted after Close")
	}
	if err := m.add("127.0.0.1:0"); err == nil {
		t.Error("added after Close")
	}
}

func TestLockDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	unlock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDir(dir); err == nil || !strings.Contains(err.Error(), "is in use by process") {
		t.Fatalf("second lock: %v", err)
	}
	unlock()
	again, err := lockDir(dir)
	if err != nil {
		t.Fatalf("after unlock: %v", err)
	}
	again()
}

func TestTableHasEveryGroupOnce(t *testing.T) {
	seen := map[string]bool{}
	for i, g := range apiGroups {
		if seen[g.name] {
			t.Errorf("group %q is there twice", g.name)
		}
		seen[g.name] = true
		if i > 0 && g.order > apiGroups[i-1].order {
			t.Errorf("group %q is out of order", g.name)
		}
	}
}
