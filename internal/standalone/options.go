// Package standalone is `fairway up`: it puts an API server, controllers,
// nodes, their data planes, DNS and a load balancer together on one machine
// and keeps them running.
//
// In go the options of the command line; out comes a running instance, bound
// to one data directory, that any kubectl can talk to. The package joins parts
// and owns the instance's files; what the parts do is theirs, and they speak
// with each other through the API only.
package standalone

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"fairway.dev/fairway/internal/dns"
)

// Options are what a person can say about an instance. Parse them with
// DefaultOptions, the flags, then Complete.
type Options struct {
	DataDir    string `json:"dataDir"`
	Kubeconfig string `json:"kubeconfig"`

	Nodes int      `json:"nodes"`
	Zones []string `json:"zones,omitempty"`
	Host  bool     `json:"host,omitempty"`

	APIPort       int      `json:"apiPort"`
	ServiceCIDRs  []string `json:"serviceCIDRs"`
	PodCIDRs      []string `json:"podCIDRs"`
	NodeCIDRs     []string `json:"nodeCIDRs"`
	NodePortRange string   `json:"nodePortRange"`
	LBAddresses   []string `json:"lbAddresses,omitempty"`
	EtcdServers   []string `json:"etcdServers,omitempty"`
	DNSUpstreams  []string `json:"dnsUpstreams,omitempty"`
	ClusterDomain string   `json:"clusterDomain"`

	Verbose bool `json:"-"`
}

// Network holds an instance's ranges, one prefix a family, IPv4 first.
type Network struct {
	Services, Pods, Nodes []netip.Prefix
	// NodePortMin and NodePortMax are inclusive.
	NodePortMin, NodePortMax int
}

// DefaultDataDir is where an instance lives unless --data-dir or
// FAIRWAY_DATA_DIR says otherwise.
const DefaultDataDir = "/var/lib/fairway"

// DefaultOptions returns what `fairway up` does when it is told nothing.
func DefaultOptions() Options {
	dir := DefaultDataDir
	if d := os.Getenv("FAIRWAY_DATA_DIR"); d != "" {
		dir = d
	}
	o := Options{
		DataDir:       dir,
		Nodes:         1,
		APIPort:       6443,
		ServiceCIDRs:  []string{"10.96.0.0/16", "fd00:10:96::/112"},
		PodCIDRs:      []string{"10.244.0.0/16", "fd00:10:244::/56"},
		NodeCIDRs:     []string{"172.30.0.0/24", "fd00:172:30::/64"},
		NodePortRange: "30000-32767",
		ClusterDomain: "cluster.local",
	}
	if _, err := os.Stat("/proc/sys/net/ipv6"); errors.Is(err, fs.ErrNotExist) {
		// A kernel booted without IPv6 can have no such links.
		o.ServiceCIDRs, o.PodCIDRs, o.NodeCIDRs = o.ServiceCIDRs[:1], o.PodCIDRs[:1], o.NodeCIDRs[:1]
	}
	return o
}

// MaxNodes is how many simulated nodes one instance may have: their addresses
// and Pod ranges must fit the default ranges.
const MaxNodes = 100

// Complete fills in what follows from the rest and checks everything that can
// be checked without looking at the machine. It returns all faults at once.
func (o *Options) Complete() (Network, error) {
	var errs []error
	fail := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	if o.DataDir == "" {
		fail("data-dir", "must not be empty")
	} else if abs, err := filepath.Abs(o.DataDir); err != nil {
		fail("data-dir", "%v", err)
	} else {
		o.DataDir = abs
	}
	if o.Kubeconfig == "" {
		o.Kubeconfig = filepath.Join(o.DataDir, "kubeconfig")
	}
	if o.Nodes < 1 || o.Nodes > MaxNodes {
		fail("nodes", "%d is out of range, give 1 to %d", o.Nodes, MaxNodes)
	}
	if o.Host && o.Nodes != 1 {
		fail("host", "makes this machine the one node; it cannot be combined with --nodes %d", o.Nodes)
	}
	if o.APIPort < 1 || o.APIPort > 65535 {
		fail("api-port", "%d is not a port, give 1 to 65535", o.APIPort)
	}
	var n Network
	n.Services = parseCIDRs("service-cidr", o.ServiceCIDRs, fail)
	n.Pods = parseCIDRs("pod-cidr", o.PodCIDRs, fail)
	n.Nodes = parseCIDRs("node-cidr", o.NodeCIDRs, fail)
	checkFits(o, n, fail)
	n.NodePortMin, n.NodePortMax = parsePortRange(o.NodePortRange, fail)
	for _, r := range o.LBAddresses {
		if _, _, err := ParseRange(r); err != nil {
			fail("lb-addresses", "%v", err)
		}
	}
	for _, u := range o.DNSUpstreams {
		if _, err := dns.ParseUpstream(u); err != nil {
			fail("dns-upstream", "%v", err)
		}
	}
	if len(errs) == 0 {
		overlaps(n, fail)
	}
	return n, errors.Join(errs...)
}

// parseCIDRs reads one or two prefixes of different families.
func parseCIDRs(flag string, in []string, fail func(string, string, ...any)) []netip.Prefix {
	if len(in) == 0 || len(in) > 2 {
		fail(flag, "give one range, or one of each family separated by a comma")
		return nil
	}
	var out []netip.Prefix
	for _, s := range in {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			fail(flag, "%q is not a range such as 10.96.0.0/16", s)
			return nil
		}
		if p != p.Masked() {
			fail(flag, "%s has bits beyond its prefix, did you mean %s?", s, p.Masked())
			return nil
		}
		out = append(out, p)
	}
	if len(out) == 2 && out[0].Addr().Is4() == out[1].Addr().Is4() {
		fail(flag, "%s and %s are of the same family, give one of each", out[0], out[1])
		return nil
	}
	return out
}

// ParseRange reads "A-B" or a prefix as the first and last address of a range.
func ParseRange(s string) (first, last netip.Addr, err error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked().Addr(), lastAddr(p), nil
	}
	a, b, ok := strings.Cut(s, "-")
	if ok {
		first, err = netip.ParseAddr(strings.TrimSpace(a))
		if err == nil {
			last, err = netip.ParseAddr(strings.TrimSpace(b))
		}
		if err == nil && first.Is4() == last.Is4() && !last.Less(first) {
			return first, last, nil
		}
	}
	return netip.Addr{}, netip.Addr{}, fmt.Errorf("%q is not a range such as 192.0.2.10-192.0.2.20 or 192.0.2.0/28", s)
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func parsePortRange(s string, fail func(string, string, ...any)) (lo, hi int) {
	a, b, ok := strings.Cut(s, "-")
	lo, err1 := strconv.Atoi(a)
	hi, err2 := strconv.Atoi(b)
	if !ok || err1 != nil || err2 != nil || lo < 1 || hi > 65535 || lo > hi {
		fail("node-port-range", "%q is not a range of ports such as 30000-32767", s)
	}
	return lo, hi
}

// checkFits holds the ranges against what they must hold.
func checkFits(o *Options, n Network, fail func(string, string, ...any)) {
	for _, p := range n.Services {
		if min := p.Addr().BitLen() - 4; p.Bits() > min {
			fail("service-cidr", "%s is too small, give a prefix of /%d or shorter", p, min)
		}
	}
	for _, p := range n.Pods {
		// Each node gets a /24 or a /64 of its own.
		each := 24
		if p.Addr().Is6() {
			each = 64
		}
		if room := each - p.Bits(); room < 0 || room < 31 && 1<<room < o.Nodes {
			fail("pod-cidr", "%s has no room for a /%d for each of %d nodes", p, each, o.Nodes)
		}
	}
	if o.Host {
		return
	}
	for _, p := range n.Nodes {
		if host := p.Addr().BitLen() - p.Bits(); host < 31 && 1<<host < o.Nodes+16 {
			fail("node-cidr", "%s has no room for %d nodes", p, o.Nodes)
		}
	}
	if len(n.Nodes) > 0 && len(n.Pods) > 0 && len(n.Nodes) < len(n.Pods) {
		fail("node-cidr", "Pods have two families and nodes one; give a range of each family")
	}
	for _, family := range []struct {
		flag string
		list []netip.Prefix
	}{{"service-cidr", n.Services}, {"pod-cidr", n.Pods}} {
		if len(family.list) > 0 && len(n.Nodes) == 1 && family.list[0].Addr().Is4() != n.Nodes[0].Addr().Is4() {
			fail(family.flag, "%s is of another family than --node-cidr %s", family.list[0], n.Nodes[0])
		}
	}
}

func overlaps(n Network, fail func(string, string, ...any)) {
	type named struct {
		flag string
		p    netip.Prefix
	}
	var all []named
	for _, p := range n.Services {
		all = append(all, named{"service-cidr", p})
	}
	for _, p := range n.Pods {
		all = append(all, named{"pod-cidr", p})
	}
	for _, p := range n.Nodes {
		all = append(all, named{"node-cidr", p})
	}
	for i, a := range all {
		for _, b := range all[:i] {
			if a.p.Overlaps(b.p) {
				fail(a.flag, "%s overlaps --%s %s", a.p, b.flag, b.p)
			}
		}
	}
}
