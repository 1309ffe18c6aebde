package kubeproxy

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"fairway.dev/fairway/internal/proxy"
)

// settings runs a command line; FILE in it is replaced by a file with config.
func settings(t *testing.T, config string, args ...string) (*Settings, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var o Options
	fs := pflag.NewFlagSet("proxy", pflag.ContinueOnError)
	fs.SetOutput(&strings.Builder{})
	o.AddFlags(fs)
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "FILE", path)
	}
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return o.Settings()
}

const head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

// kubeadm is the file that kubeadm 1.37 writes, with a cluster CIDR.
const kubeadm = head + `bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
`

func TestKubeadmFile(t *testing.T) {
	s, err := settings(t, kubeadm, "--config=FILE", "--hostname-override=Node-1")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Warnings) != 0 {
		t.Errorf("a plain file warns: %q", s.Warnings)
	}
	p := s.Proxy
	if s.Hostname != "node-1" || s.Kubeconfig != "/var/lib/kube-proxy/kubeconfig.conf" ||
		p.HealthzAddress != "0.0.0.0:10256" || p.MetricsAddress != "127.0.0.1:10249" || p.MasqueradeMark != 1<<14 ||
		p.MasqueradeAll || len(p.NodePortAddresses) != 0 || *s.OOMScore != -999 || conntrackMax(s.Conntrack, 8) != 8*32*1024 ||
		conntrackMax(s.Conntrack, 2) != 128*1024 || s.Conntrack.TCPEstablishedTimeout.Duration != 24*time.Hour {
		t.Errorf("settings %+v", s)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")}
	if !slices.Equal(p.DetectLocal.ClusterCIDRs, want) {
		t.Errorf("cluster CIDRs %v", p.DetectLocal.ClusterCIDRs)
	}
}

func TestSettings(t *testing.T) {
	cidr := "clusterCIDR: 10.244.0.0/16\n"
	for _, tc := range []struct {
		name   string
		config string // with head and cidr before it; empty: no file
		args   []string
		warn   []string // parts, each of one warning, and no other warnings
		check  func(*Settings) bool
	}{
		{name: "flags alone", args: []string{"--cluster-cidr=10.244.0.0/16", "--nodeport-addresses=primary,192.0.2.0/24", "--masquerade-all", "--kubeconfig=k", "-v=5"},
			check: func(s *Settings) bool {
				return s.Proxy.MasqueradeAll && s.Kubeconfig == "k" && s.Debug && slices.Equal(s.Proxy.NodePortAddresses, []string{"primary", "192.0.2.0/24"})
			}},
		{name: "no cluster CIDR", warn: []string{"clusterCIDR is not set"}},
		{name: "senseless flags", args: []string{"--cluster-cidr=10.244.0.0/16", "--ipvs-scheduler=rr", "--ipvs-strict-arp", "--feature-gates=A=true"},
			warn: []string{"--feature-gates has no effect", "--ipvs-scheduler has no effect", "--ipvs-strict-arp has no effect"}},
		{name: "ports by flag", args: []string{"--cluster-cidr=10.244.0.0/16", "--healthz-port=0", "--metrics-port=12345"},
			check: func(s *Settings) bool {
				return s.Proxy.HealthzAddress == "" && s.Proxy.MetricsAddress == "127.0.0.1:12345"
			}},
		{name: "IPv6 node", args: []string{"--cluster-cidr=fd00::/56", "--bind-address=::"},
			check: func(s *Settings) bool {
				return s.Proxy.HealthzAddress == "[::]:10256" && s.Proxy.MetricsAddress == "[::1]:10249" && s.Proxy.NodeIPs == nil
			}},
		{name: "bind address is the node's", args: []string{"--cluster-cidr=10.244.0.0/16", "--bind-address=192.0.2.7"},
			check: func(s *Settings) bool { return s.Proxy.NodeIPs[0].String() == "192.0.2.7" }},
		{name: "flags beside a file", config: "mode: nftables", args: []string{"--cluster-cidr=10.0.0.0/8", "--hostname-override=n"},
			warn: []string{"--cluster-cidr has no effect beside --config"},
			check: func(s *Settings) bool {
				return s.Hostname == "n" && slices.Equal(s.Proxy.NodePortAddresses, []string{"primary"}) && s.Proxy.DetectLocal.ClusterCIDRs[0].String() == "10.244.0.0/16"
			}},
		{name: "mode iptables", config: "mode: iptables\niptables: {masqueradeBit: 3, masqueradeAll: true, syncPeriod: 30s}",
			warn:  []string{"mode iptables", "iptables.syncPeriod has no effect"},
			check: func(s *Settings) bool { return s.Proxy.MasqueradeMark == 8 && s.Proxy.MasqueradeAll }},
		{name: "mode ipvs", config: "mode: ipvs\nipvs: {scheduler: rr}\nfeatureGates: {X: true}\nwinkernel: {sourceVip: a}",
			warn: []string{"mode ipvs", "field ipvs has no effect", "field featureGates has no effect", "field winkernel has no effect"}},
		{name: "unknown field", config: "nonsense: 1", warn: []string{"nonsense"}},
		{name: "bridge", config: "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}",
			check: func(s *Settings) bool {
				return s.Proxy.DetectLocal.Mode == proxy.DetectBridgeInterface && s.Proxy.DetectLocal.Interface == "cni0"
			}},
		{name: "address without a port", config: "healthzBindAddress: 192.0.2.1\nmetricsBindAddress: \"::\"",
			check: func(s *Settings) bool {
				return s.Proxy.HealthzAddress == "192.0.2.1:10256" && s.Proxy.MetricsAddress == "[::]:10249"
			}},
		{name: "logging", config: "logging: {verbosity: 4, format: json}", check: func(s *Settings) bool { return s.Debug && s.JSONLogs }},
		{name: "conntrack left alone", config: "conntrack: {maxPerCore: 0}", check: func(s *Settings) bool { return conntrackMax(s.Conntrack, 2) == 0 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args := tc.args
			if tc.config != "" {
				args = append([]string{"--config=FILE"}, args...)
			}
			s, err := settings(t, head+cidr+tc.config+"\n", args...)
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range tc.warn {
				if !slices.ContainsFunc(s.Warnings, func(w string) bool { return strings.Contains(w, part) }) {
					t.Errorf("no warning has %q", part)
				}
			}
			if len(s.Warnings) != len(tc.warn) {
				t.Errorf("warnings %q", s.Warnings)
			}
			if tc.check != nil && !tc.check(s) {
				t.Errorf("settings %+v", s)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for _, tc := range []struct{ config, want string }{
		{"mode: kernelspace", "mode"},
		{"mode: 7", "mode"},
		{"clusterCIDR: foo", "clusterCIDR"},
		{"detectLocalMode: Guess", "detectLocalMode"},
		{"detectLocalMode: BridgeInterface", "detectLocal.bridgeInterface"},
		{"detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: \"a name too long for one\"}", "detectLocal.interfaceNamePrefix"},
		{"nodePortAddresses: [primary, eth0]", "nodePortAddresses[1]"},
		{"nodePortAddresses: [primary, primary]", "nodePortAddresses[1]"},
		{"bindAddress: eth0", "bindAddress"},
		{"healthzBindAddress: 0.0.0.0:0", "healthzBindAddress"},
		{"metricsBindAddress: localhost:10249", "metricsBindAddress"},
		{"oomScoreAdj: -2000", "oomScoreAdj"},
		{"conntrack: {maxPerCore: -1}", "conntrack.maxPerCore"},
		{"conntrack: {tcpEstablishedTimeout: -1s}", "conntrack.tcpEstablishedTimeout"},
		{"nftables: {masqueradeBit: 32}", "masqueradeBit"},
		{"conntrack: yes please", "conntrack"},
	} {
		_, err := settings(t, head+tc.config+"\n", "--config=FILE")
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: %v; want an error that names %s", tc.config, err, tc.want)
		}
	}
	if _, err := settings(t, "kind: ConfigMap\napiVersion: v1\n", "--config=FILE"); err == nil {
		t.Error("took a ConfigMap for a configuration")
	}
	if _, err := settings(t, "", "--config=/no/such/file"); err == nil {
		t.Error("took a file that is not there")
	}
	_, err := settings(t, head+"mode: x\noomScoreAdj: 5000\n", "--config=FILE")
	if s := fmt.Sprint(err); !strings.Contains(s, "mode") || !strings.Contains(s, "oomScoreAdj") {
		t.Errorf("%v: want every wrong field named", err)
	}
}
