package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/netns"
	"fairway.dev/fairway/internal/node/network"
)

// Options say what nodes to run.
type Options struct {
	// Prefix starts the name of everything that is made: at most 9 bytes, such
	// as "fw-3fa9c1".
	Prefix string
	// Nodes is how many, named node-1 and on.
	Nodes int
	// Zones are given to nodes in turn, as topology.kubernetes.io/zone.
	Zones []string
	// NodeCIDRs is the LAN, PodCIDRs what all Pods share: one prefix per family.
	// Defaults: 172.30.0.0/24 and fd00:172:30::/64; 10.244.0.0/16 and
	// fd00:10:244::/56.
	NodeCIDRs, PodCIDRs []netip.Prefix
	// MachineRoutes are ranges that the machine reaches through its nodes, such
	// as the Service CIDRs.
	MachineRoutes []netip.Prefix
	// Host makes the machine the one node, named after the machine.
	Host bool
	// DataDir holds the nodes' state, below nodes/.
	DataDir string
	// Machine is the namespace that is the machine; nil for the process's own.
	Machine *netns.NS

	// ClientConfig is how a node's own parts reach the API: as system:node:NAME.
	ClientConfig func(nodeName string) (*rest.Config, error)
	// APIFromNodes is the API's URL as nodes reach it over their network, such
	// as https://172.30.0.1:6443. With it a node's traffic to the API really goes
	// through its cable. Empty: as ClientConfig says, from the machine.
	APIFromNodes string
	// Control is the machine owner's way to the API: it lists and watches Nodes,
	// Services and EndpointSlices and may create SubjectAccessReviews.
	Control *rest.Config
	// ServingCert and ClientCAs are for the nodes' HTTPS servers. Without
	// ServingCert there are none.
	ServingCert func(nodeName string, ips []netip.Addr) (tls.Certificate, error)
	ClientCAs   *x509.CertPool

	ClusterDNS    []netip.Addr
	ClusterDomain string // default cluster.local

	// OnNode runs what belongs on every node: the data plane, DNS, announcements.
	// It is called when a node gets power and returns when ctx ends, which is
	// when it loses it. It may be nil.
	OnNode func(ctx context.Context, h Handle)
	// Unrouted returns when no data plane sends new connections to the Pod,
	// given that no EndpointSlice lists it as ready any more. It may be nil; then
	// a moment must do.
	Unrouted func(ctx context.Context, pod *v1.Pod) error

	// CRISocket is the socket of a container runtime; "" takes that of
	// $FAIRWAY_CRI_SOCKET or looks in the usual places, "none" means none.
	CRISocket string
	// MaxPods is how many Pods each node offers to run; default 500.
	MaxPods int64
	// Version is told as the nodes' version; it should be the API's Kubernetes
	// version, because clients compare.
	Version string
	Logger  *slog.Logger
}

// Handle is a node with power.
type Handle struct {
	Name string
	Zone string
	// NetNS is the node's network namespace, open until OnNode returns.
	NetNS    *netns.NS
	Addrs    []netip.Addr
	PodCIDRs []netip.Prefix
	// Link is the node's link to the LAN: "eth0", or in host mode "".
	Link string
	// MTU of the LAN.
	MTU int

	apiURL string
}

// FromNode returns the configuration changed so that its connections start in
// the node's network and reach the API as a node does; unchanged if
// Options.APIFromNodes is not set.
func (h Handle) FromNode(cfg *rest.Config) *rest.Config {
	if h.apiURL == "" {
		return cfg
	}
	out := rest.CopyConfig(cfg)
	out.Host = h.apiURL
	out.Dial = h.NetNS.DialContext
	return out
}

func (o *Options) complete() error {
	if o.Nodes < 1 {
		o.Nodes = 1
	}
	if o.Host && o.Nodes != 1 {
		return fmt.Errorf("nodes %d: host mode has one, the machine", o.Nodes)
	}
	if o.DataDir == "" {
		return errors.New("data directory: none given")
	}
	if o.ClientConfig == nil {
		return errors.New("client configuration: none given")
	}
	if len(o.NodeCIDRs) == 0 {
		o.NodeCIDRs = []netip.Prefix{netip.MustParsePrefix("172.30.0.0/24"), netip.MustParsePrefix("fd00:172:30::/64")}
	}
	if len(o.PodCIDRs) == 0 {
		o.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")}
	}
	if o.ClusterDomain == "" {
		o.ClusterDomain = "cluster.local"
	}
	if o.MaxPods == 0 {
		o.MaxPods = 250
		for _, p := range o.PodCIDRs {
			if o.Host && p.Addr().Is4() {
				o.MaxPods = int64(1)<<(32-p.Bits()) - 6
			}
		}
	}
	if o.Version == "" {
		o.Version = "v1.37.2"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

func (o *Options) network() network.Config {
	return network.Config{Prefix: o.Prefix, NodeCIDRs: o.NodeCIDRs, PodCIDRs: o.PodCIDRs, MachineRoutes: o.MachineRoutes,
		Host: o.Host, StateDir: o.dir("network"), Machine: o.Machine, Logger: o.Logger}
}

func (o *Options) dir(elem string) string { return o.DataDir + "/nodes/" + elem }

// nodeName is the name of node index, from 1.
func (o *Options) nodeName(index int) string {
	if !o.Host {
		return fmt.Sprintf("node-%d", index)
	}
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "node-1"
	}
	return strings.ToLower(name)
}

func (o *Options) zone(index int) string {
	if len(o.Zones) == 0 {
		return ""
	}
	return o.Zones[(index-1)%len(o.Zones)]
}
