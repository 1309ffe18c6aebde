package proxy

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"fairway.dev/fairway/internal/netns"
	"fairway.dev/fairway/internal/proxy/source"
	"fairway.dev/fairway/internal/proxy/state"
)

// Config is what a node's proxy needs.
type Config struct {
	// NodeName is the Node this proxy stands on.
	NodeName string
	// Source tells the changes; one may serve many proxies. Whoever made it
	// runs it.
	Source *source.Source
	// Programmer programs the kernel of the same network namespace.
	Programmer Programmer
	// NetNS is where sockets are opened and connections tracked; nil is the
	// process's own network namespace.
	NetNS  *netns.NS
	Logger *slog.Logger

	// NodePortAddresses says where node ports answer: CIDRs, or "primary" (the
	// Node's own addresses), "localhost", "all". None at all is all; a family
	// that none speaks of is all too, as in kube-proxy.
	NodePortAddresses []string
	// DetectLocal tells Pods' packets from others'.
	DetectLocal DetectLocal
	// MasqueradeAll masquerades every client of a ClusterIP.
	MasqueradeAll bool
	// MasqueradeMark is the packet mark bit to use; zero lets the programmer choose.
	MasqueradeMark uint32
	// NodeIPs override the addresses of the Node object, family by family.
	NodeIPs []netip.Addr

	// HealthzAddress serves /healthz and /livez ("0.0.0.0:10256"), MetricsAddress
	// serves /metrics ("127.0.0.1:10249"). Empty serves none.
	HealthzAddress, MetricsAddress string
	// BindHardFail makes Run fail if one of them cannot be had; otherwise that
	// is logged and tried again.
	BindHardFail bool
	// Profiling serves /debug/pprof beside the metrics.
	Profiling bool
	// ConfigText is shown at /configz beside the metrics; may be empty.
	ConfigText []byte
	// Lock names what only one proxy in a network namespace may program at a
	// time; a second one waits for the first to end. Empty is no lock.
	Lock string
	// HealthTimeout is how long a change may wait before the proxy calls itself
	// unhealthy; zero is health.DefaultTimeout.
	HealthTimeout time.Duration
}

// DetectLocal is how a proxy knows Pods' packets (kube-proxy's detectLocalMode).
type DetectLocal struct {
	Mode DetectLocalMode
	// ClusterCIDRs are for DetectClusterCIDR.
	ClusterCIDRs []netip.Prefix
	// Interface is the bridge's name or the prefix of interface names.
	Interface string
}

// DetectLocalMode names a way.
type DetectLocalMode string

// The modes, by kube-proxy's names.
const (
	DetectClusterCIDR         DetectLocalMode = "ClusterCIDR"
	DetectNodeCIDR            DetectLocalMode = "NodeCIDR"
	DetectBridgeInterface     DetectLocalMode = "BridgeInterface"
	DetectInterfaceNamePrefix DetectLocalMode = "InterfaceNamePrefix"
)

func (c *Config) check() error {
	switch {
	case c.NodeName == "":
		return errors.New("proxy: Config.NodeName is missing")
	case c.Source == nil || c.Programmer == nil:
		return errors.New("proxy: Config.Source and Config.Programmer are needed")
	}
	switch c.DetectLocal.Mode {
	case "", DetectClusterCIDR, DetectNodeCIDR:
	case DetectBridgeInterface, DetectInterfaceNamePrefix:
		if c.DetectLocal.Interface == "" {
			return fmt.Errorf("proxy: detect-local mode %s needs the name of an interface", c.DetectLocal.Mode)
		}
	default:
		return fmt.Errorf("proxy: detect-local mode %q is not one of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix", c.DetectLocal.Mode)
	}
	for _, a := range c.NodePortAddresses {
		if err := CheckNodePortAddress(a); err != nil {
			return fmt.Errorf("proxy: node port addresses: %w", err)
		}
	}
	return nil
}

// The keywords of node port addresses.
const (
	NodePortsPrimary   = "primary"
	NodePortsLocalhost = "localhost"
	NodePortsAll       = "all"
)

// CheckNodePortAddress reports whether a is a CIDR or one of the keywords.
func CheckNodePortAddress(a string) error {
	switch a {
	case NodePortsPrimary, NodePortsLocalhost, NodePortsAll:
		return nil
	}
	if _, err := netip.ParsePrefix(a); err != nil {
		return fmt.Errorf("%q is neither a CIDR nor primary, localhost or all", a)
	}
	return nil
}

var (
	all4, all6   = netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")
	loopback4    = netip.MustParsePrefix("127.0.0.0/8")
	loopback6    = netip.MustParsePrefix("::1/128")
	everyAddress = []netip.Prefix{all4, all6}
)

// nodePortPrefixes resolves node port addresses for a node. "primary" of a
// node whose addresses are not known yet stands for none of its family.
func nodePortPrefixes(list []string, nodeIPs []netip.Addr) []netip.Prefix {
	if len(list) == 0 {
		return everyAddress
	}
	var out []netip.Prefix
	named := [2]bool{} // families that somebody speaks of
	add := func(p netip.Prefix) {
		if p = p.Masked(); !slices.Contains(out, p) {
			out = append(out, p)
		}
		if p.Addr().Is6() {
			named[1] = true
		} else {
			named[0] = true
		}
	}
	for _, s := range list {
		switch s {
		case NodePortsPrimary:
			for _, a := range nodeIPs {
				if !a.IsLoopback() {
					add(netip.PrefixFrom(a, a.BitLen()))
				}
			}
			named = [2]bool{true, true}
		case NodePortsLocalhost:
			add(loopback4)
			add(loopback6)
		case NodePortsAll:
			add(all4)
			add(all6)
		default:
			if p, err := netip.ParsePrefix(s); err == nil {
				add(p)
			}
		}
	}
	for i, p := range everyAddress {
		if !named[i] {
			out = append(out, p)
		}
	}
	return out
}

// facts puts together what the programmer has to know.
func (c *Config) facts(n *source.Node, serviceCIDRs []netip.Prefix) state.NodeFacts {
	f := state.NodeFacts{
		NodePortAddrs:  nodePortPrefixes(c.NodePortAddresses, c.nodeIPs(n)),
		ServiceCIDRs:   serviceCIDRs,
		MasqueradeMark: c.MasqueradeMark,
	}
	switch c.DetectLocal.Mode {
	case "", DetectClusterCIDR:
		f.PodNetwork.CIDRs = c.DetectLocal.ClusterCIDRs
	case DetectNodeCIDR:
		if n != nil {
			f.PodNetwork.CIDRs = n.PodCIDRs
		}
	case DetectBridgeInterface:
		f.PodNetwork.Interfaces = []string{c.DetectLocal.Interface}
	case DetectInterfaceNamePrefix:
		f.PodNetwork.Interfaces = []string{c.DetectLocal.Interface + "*"}
	}
	return f
}

// nodeIPs are the node's addresses: those that the Config gives, and the Node
// object's of the other family.
func (c *Config) nodeIPs(n *source.Node) []netip.Addr {
	out := slices.Clip(c.NodeIPs)
	if n == nil {
		return out
	}
	for _, a := range n.IPs {
		if !slices.ContainsFunc(c.NodeIPs, func(b netip.Addr) bool { return a.Is6() == b.Is6() }) {
			out = append(out, a)
		}
	}
	return out
}

// view is the table's view of a node.
func (c *Config) view(n *source.Node) state.View {
	v := state.View{NodeName: c.NodeName, NodeIPs: c.nodeIPs(n), MasqueradeAll: c.MasqueradeAll}
	if n != nil {
		v.Zone = n.Zone
	}
	return v
}
