package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/server"
	"fairway.dev/fairway/internal/testenv"
)

// pods is a node with a DNS server and two Pods, each a network namespace with
// a resolv.conf as the cluster's DNS policy makes it.
type pods struct {
	node *testenv.Host
	pod  [2]*testenv.Host
	conf [2]string
	// addrs are the node's, as each Pod sees it: one of each family.
	addrs [2][2]netip.Addr
}

func newPods(t *testing.T) *pods {
	t.Helper()
	testenv.RequireRoot(t)
	p := &pods{node: testenv.NewHost(t, "node")}
	for i := range p.pod {
		p.pod[i] = testenv.NewHost(t, fmt.Sprintf("pod%d", i))
		link := fmt.Sprintf("pod%d", i)
		p.node.Connect(t, link, p.pod[i], "eth0")
		p.node.AddAddr(t, link, fmt.Sprintf("10.77.%d.1/24", i))
		p.node.AddAddr(t, link, fmt.Sprintf("fd77:%d::1/64", i))
		p.pod[i].AddAddr(t, "eth0", fmt.Sprintf("10.77.%d.2/24", i))
		p.pod[i].AddAddr(t, "eth0", fmt.Sprintf("fd77:%d::2/64", i))
		p.pod[i].AddRoute(t, "default4", fmt.Sprintf("10.77.%d.1", i))
		p.addrs[i] = [2]netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.77.%d.1", i)), netip.MustParseAddr(fmt.Sprintf("fd77:%d::1", i))}
	}
	for i := range p.conf {
		p.conf[i] = p.resolvConf(t, p.addrs[i][0])
	}
	return p
}

func (p *pods) resolvConf(t *testing.T, server netip.Addr) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	text := fmt.Sprintf("search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver %s\noptions ndots:5 timeout:5\n", server)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// run runs a command inside a Pod, with its resolv.conf in the place of the machine's.
func (p *pods) run(t *testing.T, pod int, conf string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	script := `mount --bind "$1" /etc/resolv.conf && shift && exec "$@"`
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"-m", "sh", "-c", script, "sh", conf}, args...)...)
	var out []byte
	err := p.pod[pod].NS.Do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	return strings.TrimSpace(string(out)), err
}

// requireProgram skips where a program is missing, but fails in CI, which installs it.
func requireProgram(t *testing.T, name, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(name); err == nil {
		return
	}
	if os.Getenv("FAIRWAY_REQUIRE_ROOT") == "1" {
		t.Fatalf("needs %s (Debian: apt-get install %s), and FAIRWAY_REQUIRE_ROOT=1 forbids to skip", name, pkg)
	}
	t.Skipf("needs %s: apt-get install %s", name, pkg)
}

var everywhere = []netip.AddrPort{netip.MustParseAddrPort("[::]:53")}

func TestDig(t *testing.T) {
	requireProgram(t, "dig", "dnsutils")
	p := newPods(t)
	serve(t, p.node.NS, everywhere)
	for _, tt := range []struct{ args, want string }{
		{"+short web.default.svc.cluster.local", "10.96.0.20"},
		{"+short +search web", "10.96.0.20"},
		{"+short +search web.default", "10.96.0.20"},
		{"+short AAAA web.default.svc.cluster.local", "fd00:10:96::20"},
		{"+short SRV _http._tcp.web.default.svc.cluster.local", "0 100 80 web.default.svc.cluster.local."},
		{"+short -x 10.96.0.20", "web.default.svc.cluster.local."},
		{"+short -x 10.244.0.8", "db-7.db.default.svc.cluster.local."},
		{"+short -x fd00:10:96::20", "web.default.svc.cluster.local."},
		{"+short TXT dns-version.cluster.local", `"1.1.0"`},
		{"+short db-7.db.default.svc.cluster.local", "10.244.0.8"},
		{"+short outside.default.svc.cluster.local", "www.example.org.\n192.0.2.80"},
		{"+short www.example.org", "192.0.2.80"},
		{"+short +tcp web.default.svc.cluster.local", "10.96.0.20"},
		{"+short +noedns web.default.svc.cluster.local", "10.96.0.20"},
		{"+short +bufsize=4096 +dnssec web.default.svc.cluster.local", "10.96.0.20"},
		{"+short @fd77:0::1 web.default.svc.cluster.local", "10.96.0.20"},
		{"+short @10.77.1.1 web.default.svc.cluster.local", "10.96.0.20"}, // an address of the node's other side answers as itself
		{"+noall +comments nope.default.svc.cluster.local", "status: NXDOMAIN"},
		{"+noall +comments MX web.default.svc.cluster.local", "status: NOERROR"},
		{"+noall +answer WEB.default.SVC.cluster.local", "WEB.default.SVC.cluster.local. 5 IN A 10.96.0.20"},
		{"+noall +authority nope.default.svc.cluster.local", "SOA ns.dns.cluster.local. hostmaster.cluster.local."},
		{"+noall +comments +edns=3 +noednsneg web.default.svc.cluster.local", "BADVERS"},
		{"+noall +comments CH TXT version.bind", "status: REFUSED"},
	} {
		out, err := p.run(t, 0, p.conf[0], append([]string{"dig", "+tries=3", "+timeout=5"}, strings.Fields(tt.args)...)...)
		if got := strings.Join(strings.Fields(out), " "); err != nil || !strings.Contains(got, strings.Join(strings.Fields(tt.want), " ")) {
			t.Errorf("dig %s:\n%s (%v)\nwant %s", tt.args, out, err, tt.want)
		}
	}
	// A large answer comes over TCP when the datagram was cut.
	out, err := p.run(t, 0, p.conf[0], "dig", "+short", "db.default.svc.cluster.local")
	if n := len(strings.Fields(out)); err != nil || n != 100 {
		t.Errorf("dig of 100 endpoints: %d lines, %v", n, err)
	}
}

// glibc's resolver, as programs in a Pod use it.
func TestGetent(t *testing.T) {
	requireProgram(t, "getent", "libc-bin")
	p := newPods(t)
	serve(t, p.node.NS, everywhere)
	six := p.resolvConf(t, p.addrs[0][1])
	for _, tt := range []struct{ conf, db, key, want string }{
		{p.conf[0], "ahostsv4", "web", "10.96.0.20"},
		{p.conf[0], "ahostsv6", "web.default", "fd00:10:96::20"},
		{p.conf[0], "ahosts", "web.default.svc.cluster.local", "10.96.0.20"},
		{p.conf[0], "ahosts", "web.default.svc.cluster.local", "fd00:10:96::20"},
		{p.conf[0], "ahostsv4", "www.example.org", "192.0.2.80"}, // through the whole search path
		{p.conf[0], "ahostsv4", "outside", "192.0.2.80"},
		{p.conf[0], "ahostsv4", "inside", "10.96.0.20"},
		{p.conf[0], "ahostsv4", "db-42.db", "10.244.0.43"},
		{p.conf[0], "ahostsv4", "db", "10.244.0.100"}, // one of a hundred, over TCP
		{p.conf[0], "hosts", "10.96.0.20", "web.default.svc.cluster.local"},
		{p.conf[0], "hosts", "fd00:10:96::20", "web.default.svc.cluster.local"},
		{six, "ahostsv4", "web", "10.96.0.20"},
	} {
		out, err := p.run(t, 0, tt.conf, "getent", tt.db, tt.key)
		if err != nil || !slices.Contains(strings.Fields(out), tt.want) {
			t.Errorf("getent %s %s:\n%s (%v)\nwant %s", tt.db, tt.key, out, err, tt.want)
		}
	}
	if out, err := p.run(t, 0, p.conf[0], "getent", "ahosts", "nope"); err == nil {
		t.Errorf("getent of a name that does not exist:\n%s", out)
	}
}

// Go's own resolver: this test's binary again, inside a Pod.
func TestGoResolver(t *testing.T) {
	p := newPods(t)
	serve(t, p.node.NS, everywhere)
	t.Setenv("FAIRWAY_TEST_RESOLVE", "1")
	t.Setenv("GODEBUG", "netdns=go")
	out, err := p.run(t, 0, p.conf[0], os.Args[0], "-test.run=^TestResolveInPod$", "-test.v")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, line, _ := strings.Cut(out, "RESOLVED ")
	line, _, _ = strings.Cut(line, "\n")
	var got map[string][]string
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for what, want := range map[string][]string{
		"host web":             {"10.96.0.20", "fd00:10:96::20"},
		"host www.example.org": {"192.0.2.80"},
		"host outside":         {"192.0.2.80"},
		"host db-7.db":         {"10.244.0.8"},
		"srv web":              {"web.default.svc.cluster.local.:80"},
		"addr 10.96.0.20":      {"web.default.svc.cluster.local."},
		"txt":                  {"1.1.0"},
		"cname outside":        {"www.example.org."},
		"none":                 {"not found"},
	} {
		if !slices.Equal(got[what], want) {
			t.Errorf("%s: %v, want %v", what, got[what], want)
		}
	}
	if n := len(got["host db"]); n != 100 {
		t.Errorf("host db: %d addresses, want 100", n)
	}
	if n := len(got["srv db"]); n != 100 {
		t.Errorf("srv db: %d records, want 100", n)
	}
}

// TestResolveInPod is what TestGoResolver runs inside a Pod.
func TestResolveInPod(t *testing.T) {
	if os.Getenv("FAIRWAY_TEST_RESOLVE") == "" {
		t.Skip("run by TestGoResolver inside a Pod")
	}
	ctx, r := context.Background(), &net.Resolver{PreferGo: true}
	got := map[string][]string{}
	note := func(what string, values []string, err error) {
		if err != nil {
			values = []string{err.Error()}
		}
		slices.Sort(values)
		got[what] = values
	}
	for _, h := range []string{"web", "www.example.org", "outside", "db-7.db", "db"} {
		v, err := r.LookupHost(ctx, h)
		note("host "+h, v, err)
	}
	for _, name := range []string{"web", "db"} {
		_, srvs, err := r.LookupSRV(ctx, "http", "tcp", name+".default.svc.cluster.local")
		var v []string
		for _, s := range srvs {
			v = append(v, fmt.Sprintf("%s:%d", s.Target, s.Port))
		}
		note("srv "+name, v, err)
	}
	v, err := r.LookupAddr(ctx, "10.96.0.20")
	note("addr 10.96.0.20", v, err)
	v, err = r.LookupTXT(ctx, "dns-version.cluster.local")
	note("txt", v, err)
	cname, err := r.LookupCNAME(ctx, "outside")
	note("cname outside", []string{cname}, err)
	_, err = r.LookupHost(ctx, "nope")
	if e, ok := err.(*net.DNSError); ok && e.IsNotFound {
		got["none"] = []string{"not found"}
	}
	b, _ := json.Marshal(got)
	fmt.Printf("RESOLVED %s\n", b)
}

// One Pod floods the server, over UDP from many ports, with every kind of
// question; the other Pod's questions are all answered meanwhile.
func TestFloodStarvesNobody(t *testing.T) {
	p := newPods(t)
	serve(t, p.node.NS, everywhere, func(o *server.Options) { o.PerClient = 50 })
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var sent atomic.Int64
	for i := range 4 {
		c, err := p.pod[0].Dial("udp", netip.AddrPortFrom(p.addrs[0][0], 53).String(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		wg.Go(func() {
			web, _ := question("web.default.svc.cluster.local.", dns.TypeA).Pack()
			for n := 0; ctx.Err() == nil && n < 2_000_000; n++ {
				if n%4 == 0 {
					slow, _ := question(fmt.Sprintf("slow.%d-%d.example.org.", i, n), dns.TypeA).Pack()
					c.Write(slow)
				} else {
					c.Write(web)
				}
				sent.Add(1)
			}
		})
	}
	for end := time.Now().Add(20 * time.Second); sent.Load() < 10_000; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the flood does not get going: %d questions", sent.Load())
		}
	}
	c, err := p.pod[1].Dial("udp", netip.AddrPortFrom(p.addrs[1][0], 53).String(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	dc := &dns.Conn{Conn: c}
	defer dc.Close()
	const questions = 200
	lost, worst := 0, time.Duration(0)
	var all time.Duration
	for i := range questions {
		name := "web.default.svc.cluster.local."
		if i%2 == 1 {
			name = fmt.Sprintf("n%d.example.org.", i) // not in the cache: upstream is asked
		}
		m := question(name, dns.TypeA)
		begin := time.Now()
		dc.SetDeadline(begin.Add(3 * time.Second))
		if err := dc.WriteMsg(m); err != nil {
			t.Fatal(err)
		}
		for {
			r, err := dc.ReadMsg()
			if err != nil {
				lost++
				break
			}
			if r.Id != m.Id {
				continue
			}
			if want := map[bool]int{true: dns.RcodeNameError}[i%2 == 1]; r.Rcode != want {
				t.Errorf("%s: %s", name, dns.RcodeToString[r.Rcode])
			}
			break
		}
		all += time.Since(begin)
		worst = max(worst, time.Since(begin))
	}
	t.Logf("beside a flood of %d questions: %d of %d lost, mean %v, worst %v", sent.Load(), lost, questions, all/questions, worst)
	if lost > questions/50 {
		t.Errorf("%d of %d questions lost", lost, questions)
	}
	// Over TCP too.
	tc, err := p.pod[1].Dial("tcp", netip.AddrPortFrom(p.addrs[1][0], 53).String(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer tc.Close()
	tc.SetDeadline(time.Now().Add(10 * time.Second))
	dtc := &dns.Conn{Conn: tc}
	if err := dtc.WriteMsg(question("web.default.svc.cluster.local.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	if r, err := dtc.ReadMsg(); err != nil || len(r.Answer) != 1 {
		t.Errorf("over TCP: %v, %v", r, err)
	}
}
