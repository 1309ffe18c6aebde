package apiserver

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// Options say what a Server serves and where it keeps its state. The zero
// value of every field but DataDir has a default.
type Options struct {
	// DataDir holds the store (etcd/), keys that last (pki/), certificates of this
	// run (certs/) and a lock that keeps a second Server out.
	DataDir string

	// Listen are the addresses to serve on, each "ip:port"; port 0 takes any
	// free port, and an address after the first with port 0 takes the first
	// one's. Our own clients use the first. Default: 127.0.0.1:0.
	Listen []string

	// AdvertiseAddress is where Pods reach the server: the endpoint of the
	// Service default/kubernetes. It has to be an address that is neither
	// loopback nor link-local, and some Listen address has to cover it.
	// Default: the first listening address that qualifies, else the first of
	// the machine's addresses that does; without any, default/kubernetes has
	// no endpoint.
	AdvertiseAddress netip.Addr

	// SANs are further names and addresses that the serving certificate is for.
	SANs []string

	// ServiceCIDRs are the ranges of ClusterIPs, the first one's family being
	// the default of Services: one range, or one of each family.
	// Default: 10.96.0.0/16 and fd00:10:96::/112.
	ServiceCIDRs []netip.Prefix

	// NodePorts is the range of node ports. Default: 30000-32767.
	NodePorts PortRange

	// embedded: etcd runs in this process, and no other server has it. Start sets it.
	embedded bool

	// EtcdServers are the URLs of an etcd to use instead of the embedded one.
	// Several Servers may share it if they share their keys too: see PKIDir.
	EtcdServers []string
	// EtcdCAFile, EtcdCertFile and EtcdKeyFile secure the way to EtcdServers.
	EtcdCAFile, EtcdCertFile, EtcdKeyFile string

	// PKIDir holds the keys that last: the authorities' and the one that signs
	// the tokens of ServiceAccounts. Default: DataDir/pki.
	PKIDir string

	// ClusterDomain is the DNS domain of Services. Default: cluster.local.
	ClusterDomain string

	// EvictAfter is how long Pods stay bound to a Node that is not ready before
	// they are replaced elsewhere, unless they say so themselves (tolerations);
	// whole seconds. Default: upstream's five minutes.
	EvictAfter time.Duration

	// Logger gets the server's messages. Default: slog.Default().
	Logger *slog.Logger
}

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last uint16 }

// ParsePortRange reads "30000-32767".
func ParsePortRange(s string) (PortRange, error) {
	a, b, ok := strings.Cut(s, "-")
	first, err1 := strconv.ParseUint(a, 10, 16)
	last, err2 := strconv.ParseUint(b, 10, 16)
	if !ok || err1 != nil || err2 != nil || first == 0 || first > last {
		return PortRange{}, fmt.Errorf("port range %q: want FIRST-LAST with 1 <= FIRST <= LAST <= 65535, such as 30000-32767", s)
	}
	return PortRange{uint16(first), uint16(last)}, nil
}

func (r PortRange) String() string { return fmt.Sprintf("%d-%d", r.First, r.Last) }

func (r PortRange) size() int { return int(r.Last) - int(r.First) + 1 }

const defaultClusterDomain = "cluster.local"

// withDefaults returns a copy with every default filled in but those that need
// open listeners, or says what is wrong with the options.
func (o Options) withDefaults() (Options, error) {
	if o.DataDir == "" {
		return o, errors.New("data directory: none given; name one")
	}
	if len(o.Listen) == 0 {
		o.Listen = []string{"127.0.0.1:0"}
	}
	for _, l := range o.Listen {
		if _, err := netip.ParseAddrPort(l); err != nil {
			return o, fmt.Errorf("listen address %q: want IP:PORT, such as 127.0.0.1:6443 or [::]:6443", l)
		}
	}
	if len(o.ServiceCIDRs) == 0 {
		o.ServiceCIDRs = []netip.Prefix{
			netip.MustParsePrefix("10.96.0.0/16"),
			netip.MustParsePrefix("fd00:10:96::/112"),
		}
	}
	if err := checkServiceCIDRs(o.ServiceCIDRs); err != nil {
		return o, err
	}
	if o.NodePorts == (PortRange{}) {
		o.NodePorts = PortRange{30000, 32767}
	}
	if o.NodePorts.First == 0 || o.NodePorts.First > o.NodePorts.Last {
		return o, fmt.Errorf("node port range %s: it has to begin at 1 or above and end no lower than it begins", o.NodePorts)
	}
	if a := o.AdvertiseAddress; a.IsValid() && !advertisable(a) {
		return o, fmt.Errorf("advertise address %s: Pods cannot reach a loopback, link-local or unspecified address", a)
	}
	if o.PKIDir == "" {
		o.PKIDir = o.DataDir + "/pki"
	}
	if o.ClusterDomain == "" {
		o.ClusterDomain = defaultClusterDomain
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o, nil
}

func checkServiceCIDRs(cidrs []netip.Prefix) error {
	if len(cidrs) > 2 {
		return fmt.Errorf("service CIDRs %v: at most two, one of each IP family", cidrs)
	}
	for _, c := range cidrs {
		if !c.IsValid() || c != c.Masked() {
			return fmt.Errorf("service CIDR %s: not a network address; did you mean %s?", c, c.Masked())
		}
		if bits := c.Addr().BitLen() - c.Bits(); bits < 3 {
			return fmt.Errorf("service CIDR %s: it has fewer than 8 addresses; use a shorter prefix", c)
		}
	}
	if len(cidrs) == 2 && cidrs[0].Addr().Is4() == cidrs[1].Addr().Is4() {
		return fmt.Errorf("service CIDRs %v: both are of one IP family; two have to be an IPv4 and an IPv6 one", cidrs)
	}
	return nil
}

// advertisable tells whether ip may be an endpoint's address.
func advertisable(ip netip.Addr) bool {
	return ip.IsValid() && !ip.IsUnspecified() && !ip.IsLoopback() && !ip.IsMulticast() &&
		!ip.IsLinkLocalUnicast() && ip.Zone() == ""
}

// defaultAdvertise picks an address for default/kubernetes, of the first
// Service range's family where it can.
func defaultAdvertise(listening []netip.AddrPort, cidrs []netip.Prefix) netip.Addr {
	var candidates []netip.Addr
	wildcard := false
	for _, l := range listening {
		candidates = append(candidates, l.Addr())
		wildcard = wildcard || l.Addr().IsUnspecified()
	}
	candidates = append(candidates, interfaceAddrs()...)
	want4 := cidrs[0].Addr().Is4()
	var other netip.Addr
	for _, c := range candidates {
		c = c.Unmap()
		switch {
		case !advertisable(c):
		case c.Is4() == want4:
			return c
		case !other.IsValid():
			other = c
		}
	}
	return other
}

// interfaceAddrs returns the addresses of the machine (of its network
// namespace), in the kernel's order.
func interfaceAddrs() []netip.Addr {
	var out []netip.Addr
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr())
		}
	}
	return out
}

// hostname returns the machine's name, or "" if it has none.
func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return strings.ToLower(name)
}
