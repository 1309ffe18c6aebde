// Package kubeproxy runs a node's proxy the way kube-proxy is run: by its
// flags, its --config file and its defaults, so that an existing deployment
// needs no more than another image and command.
//
// In goes a command line, out comes a proxy.Config, and a running proxy on a
// source and a programmer of its own. What kube-proxy can be told but means
// nothing here is named in a warning; what means nothing anywhere is refused.
// No other package knows kube-proxy's configuration format.
package kubeproxy

import (
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-proxy/config/v1alpha1"
)

// Options is a command line.
type Options struct {
	ConfigFile     string
	WriteConfigTo  string
	Cleanup        bool
	InitOnly       bool
	Master         string
	Hostname       string
	Verbosity      int
	LogFormat      string
	StartupProfile string // write a CPU profile of the start to this file

	flags *pflag.FlagSet
	// fromFlags is what the flags say in the words of a config file.
	fromFlags v1alpha1.KubeProxyConfiguration
	// noted are values of flags that go elsewhere or nowhere.
	healthzPort, metricsPort int32
}

// flag names that keep their meaning when a config file is given, as in
// kube-proxy; the others are then ignored.
var besideConfig = map[string]bool{
	"config": true, "write-config-to": true, "cleanup": true, "init-only": true, "master": true,
	"hostname-override": true, "v": true, "logging-format": true, "startup-profile": true, "help": true,
}

// senseless are flags of kube-proxy that have nothing to set here, and why.
// They take any value.
var senseless = map[string]string{
	"feature-gates":                   "there are no feature gates",
	"kube-api-content-type":           "the API is always read in protobuf",
	"kube-api-burst":                  "the proxy makes four requests and then watches",
	"kube-api-qps":                    "the proxy makes four requests and then watches",
	"iptables-localhost-nodeports":    "node ports answer on loopback where --nodeport-addresses says so",
	"iptables-sync-period":            "drift is noticed when it happens",
	"iptables-min-sync-period":        "a change costs what it changes; there is nothing to hold back for",
	"ipvs-sync-period":                "there is no IPVS mode",
	"ipvs-min-sync-period":            "there is no IPVS mode",
	"ipvs-scheduler":                  "there is no IPVS mode; backends are picked at random",
	"ipvs-exclude-cidrs":              "there is no IPVS mode",
	"ipvs-strict-arp":                 "there is no IPVS mode",
	"ipvs-tcp-timeout":                "there is no IPVS mode",
	"ipvs-tcpfin-timeout":             "there is no IPVS mode",
	"ipvs-udp-timeout":                "there is no IPVS mode",
	"config-sync-period":              "watches are not polled",
	"show-hidden-metrics-for-version": "no metric is hidden",
	"vmodule":                         "there is one level for all",
	"log-flush-frequency":             "logs are not buffered",
	"boot-id-file":                    "it is not read",
	"machine-id-file":                 "it is not read",
}

// senselessBool are those of them that may come without a value.
var senselessBool = map[string]bool{"iptables-localhost-nodeports": true, "ipvs-strict-arp": true}

// AddFlags puts kube-proxy's flags into fs.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	o.flags = fs
	c := &o.fromFlags
	fs.StringVar(&o.ConfigFile, "config", "", "a KubeProxyConfiguration file; most other flags are then ignored, as in kube-proxy")
	fs.StringVar(&o.WriteConfigTo, "write-config-to", "", "write the configuration that the other flags make to this file, and exit")
	fs.BoolVar(&o.Cleanup, "cleanup", false, "remove everything the proxy has put into the kernel, and exit")
	fs.BoolVar(&o.InitOnly, "init-only", false, "do what needs full root privileges (connection tracking limits), and exit")
	fs.StringVar(&o.Master, "master", "", "URL of the API server, in place of the kubeconfig's")
	fs.StringVar(&o.Hostname, "hostname-override", "", "name of the Node the proxy stands on; the host name if empty")
	fs.IntVarP(&o.Verbosity, "v", "v", 0, "log level; 4 and above logs at debug level")
	fs.StringVar(&o.LogFormat, "logging-format", "text", "text or json")
	fs.StringVar(&o.StartupProfile, "startup-profile", "", "write a CPU profile of the start, up to the first complete sync, to this file")

	fs.StringVar(&c.ClientConnection.Kubeconfig, "kubeconfig", "", "how to reach the API server; in a Pod, its service account if empty")
	fs.StringVar(&c.BindAddress, "bind-address", "0.0.0.0", "this node's address, in place of the Node object's; 0.0.0.0 and :: leave that")
	fs.StringVar(&c.HealthzBindAddress, "healthz-bind-address", "", "where to serve /healthz and /livez (default 0.0.0.0:10256)")
	fs.StringVar(&c.MetricsBindAddress, "metrics-bind-address", "", "where to serve /metrics (default 127.0.0.1:10249)")
	fs.Int32Var(&o.healthzPort, "healthz-port", -1, "port of --healthz-bind-address; 0 serves none")
	fs.Int32Var(&o.metricsPort, "metrics-port", -1, "port of --metrics-bind-address; 0 serves none")
	fs.MarkDeprecated("healthz-port", "use --healthz-bind-address")
	fs.MarkDeprecated("metrics-port", "use --metrics-bind-address")
	fs.BoolVar(&c.BindAddressHardFail, "bind-address-hard-fail", false, "exit if one of the two cannot be bound, rather than try again")
	fs.BoolVar(&c.EnableProfiling, "profiling", false, "serve /debug/pprof beside the metrics")
	fs.StringVar((*string)(&c.Mode), "proxy-mode", "", "accepted for compatibility: iptables, ipvs and nftables all mean Fairway's own nftables table")
	fs.BoolVar(&c.NFTables.MasqueradeAll, "masquerade-all", false, "masquerade everything that goes to a ClusterIP")
	c.NFTables.MasqueradeBit = new(int32)
	fs.Int32Var(c.NFTables.MasqueradeBit, "iptables-masquerade-bit", 14, "bit of the packet mark to use for masquerading, 0 to 31")
	fs.StringVar((*string)(&c.DetectLocalMode), "detect-local-mode", "", "how to know packets of Pods: ClusterCIDR (default), NodeCIDR, BridgeInterface or InterfaceNamePrefix")
	fs.StringVar(&c.ClusterCIDR, "cluster-cidr", "", "the Pods' addresses, for ClusterCIDR; one CIDR, or one of each family with a comma between")
	fs.StringVar(&c.DetectLocal.BridgeInterface, "pod-bridge-interface", "", "the bridge of the Pods, for BridgeInterface")
	fs.StringVar(&c.DetectLocal.InterfaceNamePrefix, "pod-interface-name-prefix", "", "how names of Pods' interfaces start, for InterfaceNamePrefix")
	fs.StringSliceVar(&c.NodePortAddresses, "nodeport-addresses", nil, "where node ports answer: CIDRs, primary (the Node's own addresses), localhost, all (default all; primary with --proxy-mode nftables)")
	c.OOMScoreAdj = new(int32)
	fs.Int32Var(c.OOMScoreAdj, "oom-score-adj", -999, "oom_score_adj of this process, -1000 to 1000")
	ct := &c.Conntrack
	ct.MaxPerCore, ct.Min = new(int32), new(int32)
	ct.TCPEstablishedTimeout, ct.TCPCloseWaitTimeout = &metav1.Duration{}, &metav1.Duration{}
	fs.Int32Var(ct.MaxPerCore, "conntrack-max-per-core", 32*1024, "connections to track, per CPU; 0 leaves the limit as it is")
	fs.Int32Var(ct.Min, "conntrack-min", 128*1024, "connections to track at the least")
	fs.DurationVar(&ct.TCPEstablishedTimeout.Duration, "conntrack-tcp-timeout-established", 24*time.Hour, "how long an idle TCP connection is remembered; 0 leaves it")
	fs.DurationVar(&ct.TCPCloseWaitTimeout.Duration, "conntrack-tcp-timeout-close-wait", time.Hour, "how long a half-closed TCP connection is remembered; 0 leaves it")
	fs.BoolVar(&ct.TCPBeLiberal, "conntrack-tcp-be-liberal", false, "do not take packets outside the TCP window for invalid")
	fs.DurationVar(&ct.UDPTimeout.Duration, "conntrack-udp-timeout", 0, "how long an unanswered UDP flow is remembered; 0 leaves it")
	fs.DurationVar(&ct.UDPStreamTimeout.Duration, "conntrack-udp-timeout-stream", 0, "how long an answered UDP flow is remembered; 0 leaves it")

	for name, why := range senseless {
		fs.String(name, "", "accepted and ignored: "+why)
		fs.MarkHidden(name)
		if senselessBool[name] {
			fs.Lookup(name).NoOptDefVal = "true"
		}
	}
}

// portFlags applies the deprecated port flags.
func (o *Options) portFlags(c *v1alpha1.KubeProxyConfiguration) error {
	for _, f := range []struct {
		name string
		port int32
		addr *string
	}{{"healthz-port", o.healthzPort, &c.HealthzBindAddress}, {"metrics-port", o.metricsPort, &c.MetricsBindAddress}} {
		switch {
		case !o.flags.Changed(f.name):
		case f.port == 0:
			*f.addr = off
		case f.port < 0 || f.port > 65535:
			return fmt.Errorf("--%s: %d is not a port: use 1 to 65535, or 0 to serve none", f.name, f.port)
		default:
			host := *f.addr
			if h, _, err := net.SplitHostPort(host); err == nil {
				host = h
			}
			*f.addr = net.JoinHostPort(host, strconv.Itoa(int(f.port)))
		}
	}
	return nil
}

// off stands for an address that is not served at all.
const off = "off"
