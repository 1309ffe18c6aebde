package kubeproxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-proxy/config/v1alpha1"
	"sigs.k8s.io/yaml"

	"fairway.dev/fairway/internal/proxy"
)

// Settings is what a command line comes to.
type Settings struct {
	// Proxy lacks Source, Programmer, Logger and NodeName.
	Proxy      proxy.Config
	Kubeconfig string
	Hostname   string // empty: the host's
	OOMScore   *int32
	Conntrack  v1alpha1.KubeProxyConntrackConfiguration
	Debug      bool
	JSONLogs   bool
	// Warnings name what was set and has no effect, and why.
	Warnings []string
}

// Settings reads the config file, if there is one, and checks everything. The
// error names every field that is wrong.
func (o *Options) Settings() (*Settings, error) {
	s := &Settings{}
	c := o.fromFlags
	if o.ConfigFile != "" {
		file, err := o.readFile(s)
		if err != nil {
			return nil, err
		}
		c = *file
	} else {
		for name, why := range senseless {
			if o.flags.Changed(name) {
				s.warn("--%s has no effect: %s", name, why)
			}
		}
		if err := o.portFlags(&c); err != nil {
			return nil, err
		}
		slices.Sort(s.Warnings)
	}
	if o.Hostname != "" {
		c.HostnameOverride = o.Hostname
		if strings.TrimSpace(o.Hostname) == "" {
			return nil, errors.New("--hostname-override: only spaces; leave it out to use the host name")
		}
	}
	r := resolver{s: s, c: &c}
	r.resolve()
	s.Debug = s.Debug || o.Verbosity >= 4
	switch o.LogFormat {
	case "", "text":
	case "json":
		s.JSONLogs = true
	default:
		r.bad("--logging-format", o.LogFormat, "neither text nor json")
	}
	if err := errors.Join(r.errs...); err != nil {
		return nil, err
	}
	text, err := json.Marshal(map[string]any{"kubeproxy.config.k8s.io": c})
	if err != nil {
		return nil, err
	}
	s.Proxy.ConfigText = text
	return s, nil
}

func (s *Settings) warn(format string, args ...any) {
	s.Warnings = append(s.Warnings, fmt.Sprintf(format, args...))
}

// readFile reads a KubeProxyConfiguration.
func (o *Options) readFile(s *Settings) (*v1alpha1.KubeProxyConfiguration, error) {
	b, err := os.ReadFile(o.ConfigFile)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	wrong := func(err error) error { return fmt.Errorf("--config %s: %w", o.ConfigFile, err) }
	c := &v1alpha1.KubeProxyConfiguration{}
	if err := yaml.Unmarshal(b, c); err != nil {
		return nil, wrong(err)
	}
	const group, kind = "kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration"
	if c.APIVersion != group || c.Kind != kind {
		return nil, wrong(fmt.Errorf("apiVersion %q, kind %q: want %s, %s", c.APIVersion, c.Kind, group, kind))
	}
	// As in kube-proxy a field that nobody knows is no reason not to start.
	if err := yaml.UnmarshalStrict(b, &v1alpha1.KubeProxyConfiguration{}); err != nil {
		s.warn("--config %s: %s", o.ConfigFile, strings.ReplaceAll(strings.TrimPrefix(err.Error(), "error unmarshaling JSON: while decoding JSON: "), "json: ", ""))
	}
	for _, name := range changed(o) {
		if !besideConfig[name] {
			s.warn("--%s has no effect beside --config", name)
		}
	}
	var given map[string]any
	if err := yaml.Unmarshal(b, &given); err != nil {
		return nil, wrong(err)
	}
	warnSenseless(s, given)
	setDefaults(c)
	return c, nil
}

// setDefaults fills in kube-proxy's defaults for what a file leaves out, which
// for the flags are theirs.
func setDefaults(c *v1alpha1.KubeProxyConfiguration) {
	num := func(p **int32, v int32) {
		if *p == nil {
			*p = &v
		}
	}
	dur := func(p **metav1.Duration, v time.Duration) {
		if *p == nil {
			*p = &metav1.Duration{Duration: v}
		}
	}
	num(&c.OOMScoreAdj, -999)
	num(&c.NFTables.MasqueradeBit, 14)
	num(&c.Conntrack.MaxPerCore, 32*1024)
	num(&c.Conntrack.Min, 128*1024)
	dur(&c.Conntrack.TCPEstablishedTimeout, 24*time.Hour)
	dur(&c.Conntrack.TCPCloseWaitTimeout, time.Hour)
}

// senselessFields of a KubeProxyConfiguration, and why they are without effect.
var senselessFields = []struct{ path, why string }{
	{"featureGates", "there are no feature gates"},
	{"clientConnection.acceptContentTypes", "the API is always read in protobuf"},
	{"clientConnection.contentType", "the API is always read in protobuf"},
	{"clientConnection.qps", "the proxy makes four requests and then watches"},
	{"clientConnection.burst", "the proxy makes four requests and then watches"},
	{"logging.flushFrequency", "logs are not buffered"},
	{"logging.vmodule", "there is one level for all"},
	{"logging.options", "logs go to standard error"},
	{"showHiddenMetricsForVersion", "no metric is hidden"},
	{"iptables.localhostNodePorts", "node ports answer on loopback where nodePortAddresses says so"},
	{"iptables.syncPeriod", "drift is noticed when it happens"},
	{"iptables.minSyncPeriod", "a change costs what it changes; there is nothing to hold back for"},
	{"nftables.syncPeriod", "drift is noticed when it happens"},
	{"nftables.minSyncPeriod", "a change costs what it changes; there is nothing to hold back for"},
	{"ipvs", "there is no IPVS mode"},
	{"winkernel", "this is Linux"},
	{"windowsRunAsService", "this is Linux"},
	{"configSyncPeriod", "watches are not polled"},
	{"portRange", "kube-proxy has not used it for years either"},
}

// warnSenseless warns of those that are set to anything but nothing. Files that
// kubeadm writes hold every field there is, most of them null or zero.
func warnSenseless(s *Settings, given map[string]any) {
	for _, f := range senselessFields {
		var at any = given
		for _, part := range strings.Split(f.path, ".") {
			m, _ := at.(map[string]any)
			at = m[part]
		}
		if isSet(at) {
			s.warn("config field %s has no effect: %s", f.path, f.why)
		}
	}
}

func isSet(v any) bool {
	switch v := v.(type) {
	case nil:
		return false
	case string:
		return v != "" && v != "0s" && v != "0"
	case map[string]any:
		for _, e := range v {
			if isSet(e) {
				return true
			}
		}
		return false
	case []any:
		return len(v) > 0
	}
	return !reflect.ValueOf(v).IsZero()
}

func changed(o *Options) (names []string) {
	if o.flags == nil {
		return nil
	}
	for _, f := range flagNames(o.flags) {
		if o.flags.Changed(f) {
			names = append(names, f)
		}
	}
	return names
}

// resolver turns a configuration into settings, collecting what is wrong.
type resolver struct {
	s    *Settings
	c    *v1alpha1.KubeProxyConfiguration
	errs []error
}

func (r *resolver) bad(field string, value any, cause string) {
	r.errs = append(r.errs, fmt.Errorf("%s: %q: %s", field, fmt.Sprint(value), cause))
}

func (r *resolver) resolve() {
	c, p := r.c, &r.s.Proxy
	r.s.Kubeconfig = c.ClientConnection.Kubeconfig
	r.s.Hostname = strings.ToLower(strings.TrimSpace(c.HostnameOverride))
	r.s.Conntrack = c.Conntrack
	r.s.OOMScore = c.OOMScoreAdj
	r.s.Debug = c.Logging.Verbosity >= 4
	r.s.JSONLogs = c.Logging.Format == "json"
	p.BindHardFail, p.Profiling = c.BindAddressHardFail, c.EnableProfiling

	bind := r.bindAddress()
	anywhere, loopback := "0.0.0.0", "127.0.0.1"
	if bind.Is6() {
		anywhere, loopback = "::", "::1"
	}
	p.HealthzAddress = r.address("healthzBindAddress", c.HealthzBindAddress, anywhere, 10256)
	p.MetricsAddress = r.address("metricsBindAddress", c.MetricsBindAddress, loopback, 10249)

	bit := c.NFTables.MasqueradeBit
	switch c.Mode {
	case "", "iptables", "ipvs":
		if c.IPTables.MasqueradeBit != nil {
			bit = c.IPTables.MasqueradeBit
		}
		if c.Mode != "" {
			r.s.warn("mode %s: Fairway programs an nftables table of its own in every mode", c.Mode)
		}
	case "nftables":
	default:
		r.bad("mode", c.Mode, "not a mode of kube-proxy on Linux; leave it out")
	}
	if bit != nil {
		if *bit < 0 || *bit > 31 {
			r.bad("masqueradeBit", *bit, "not a bit of the packet mark; use 0 to 31")
		} else {
			p.MasqueradeMark = 1 << uint(*bit)
		}
	}
	p.MasqueradeAll = c.IPTables.MasqueradeAll || c.NFTables.MasqueradeAll
	r.detectLocal()
	r.nodePorts()
	r.ranges()
}

// bindAddress is this node's address where it overrides the Node object's.
func (r *resolver) bindAddress() netip.Addr {
	if r.c.BindAddress == "" {
		return netip.IPv4Unspecified()
	}
	a, err := netip.ParseAddr(r.c.BindAddress)
	if err != nil {
		r.bad("bindAddress", r.c.BindAddress, "not an IP address; use this node's, or leave it out")
		return netip.IPv4Unspecified()
	}
	if !a.IsUnspecified() {
		r.s.Proxy.NodeIPs = []netip.Addr{a.Unmap()}
	}
	return a.Unmap()
}

// address completes an address to serve on.
func (r *resolver) address(field, value, host string, port int) string {
	switch {
	case value == off:
		return ""
	case value == "":
		return net.JoinHostPort(host, strconv.Itoa(port))
	}
	if a, err := netip.ParseAddr(strings.Trim(value, "[]")); err == nil {
		return netip.AddrPortFrom(a, uint16(port)).String()
	}
	h, p, err := net.SplitHostPort(value)
	if err != nil {
		r.bad(field, value, "not an address and port; use for example "+net.JoinHostPort(host, strconv.Itoa(port)))
		return ""
	}
	if h == "" {
		h = host
	}
	if _, err := netip.ParseAddr(h); err != nil {
		r.bad(field, value, "its host is not an IP address")
	}
	if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
		r.bad(field, value, "its port is not 1 to 65535")
	}
	return net.JoinHostPort(h, p)
}

func (r *resolver) detectLocal() {
	c, d := r.c, &r.s.Proxy.DetectLocal
	d.Mode = proxy.DetectLocalMode(c.DetectLocalMode)
	for _, s := range strings.Split(c.ClusterCIDR, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			r.bad("clusterCIDR", s, "not a CIDR; use for example 10.244.0.0/16")
			continue
		}
		d.ClusterCIDRs = append(d.ClusterCIDRs, p.Masked())
	}
	switch d.Mode {
	case "", proxy.DetectClusterCIDR:
		if len(d.ClusterCIDRs) == 0 {
			r.s.warn("clusterCIDR is not set: Pods cannot be told from other clients, so nobody is masqueraded on the way to a ClusterIP")
		}
	case proxy.DetectNodeCIDR:
	case proxy.DetectBridgeInterface:
		d.Interface = r.iface("detectLocal.bridgeInterface", c.DetectLocal.BridgeInterface)
	case proxy.DetectInterfaceNamePrefix:
		d.Interface = r.iface("detectLocal.interfaceNamePrefix", c.DetectLocal.InterfaceNamePrefix)
	default:
		r.bad("detectLocalMode", d.Mode, "not one of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix")
	}
}

func (r *resolver) iface(field, name string) string {
	if name == "" || len(name) > 15 || strings.ContainsAny(name, "/ *") {
		r.bad(field, name, "not the name of an interface, which detectLocalMode needs")
	}
	return name
}

func (r *resolver) nodePorts() {
	list := r.c.NodePortAddresses
	seen := map[string]bool{}
	for i, a := range list {
		field := fmt.Sprintf("nodePortAddresses[%d]", i)
		if err := proxy.CheckNodePortAddress(a); err != nil {
			r.bad(field, a, "neither a CIDR nor primary, localhost or all")
		}
		if seen[a] {
			r.bad(field, a, "is there twice")
		}
		seen[a] = true
	}
	if len(list) == 0 && r.c.Mode == "nftables" { // kube-proxy's default in that mode
		list = []string{proxy.NodePortsPrimary}
	}
	r.s.Proxy.NodePortAddresses = list
}

// ranges checks numbers.
func (r *resolver) ranges() {
	if s := r.c.OOMScoreAdj; s != nil && (*s < -1000 || *s > 1000) {
		r.bad("oomScoreAdj", *s, "not -1000 to 1000")
	}
	ct := r.c.Conntrack
	for name, v := range map[string]*int32{"maxPerCore": ct.MaxPerCore, "min": ct.Min} {
		if v != nil && *v < 0 {
			r.bad("conntrack."+name, *v, "is negative; use 0 to leave the limit as it is")
		}
	}
	durations := map[string]int64{"udpTimeout": int64(ct.UDPTimeout.Duration), "udpStreamTimeout": int64(ct.UDPStreamTimeout.Duration)}
	if ct.TCPEstablishedTimeout != nil {
		durations["tcpEstablishedTimeout"] = int64(ct.TCPEstablishedTimeout.Duration)
	}
	if ct.TCPCloseWaitTimeout != nil {
		durations["tcpCloseWaitTimeout"] = int64(ct.TCPCloseWaitTimeout.Duration)
	}
	for name, d := range durations {
		if d < 0 {
			r.bad("conntrack."+name, d, "is negative; use 0 to leave it as it is")
		}
	}
}
