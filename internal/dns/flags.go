package dns

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"fairway.dev/fairway/internal/dns/zone"
)

// Flags are the command line's options of a DNS beside a real API server.
type Flags struct {
	Kubeconfig, Server string
	Listen, HTTP       []string
	Domain             string
	TTL                time.Duration
	Pods               string
	ReverseZones       []string
	Upstreams, Stubs   []string
	ResolvConf         string
	NoForward          bool
	CacheSize          int
	ServeStale         time.Duration
	MaxConcurrent      int
	PerClient          int
	MaxUDPSize         int
	Lameduck           time.Duration
	ServiceIPs         []string
	LogLevel           string
}

// Add adds the flags to a set.
func (f *Flags) Add(fs *pflag.FlagSet) {
	fs.StringVar(&f.Kubeconfig, "kubeconfig", "", "kubeconfig file for the API (default: the Pod's own service account)")
	fs.StringVar(&f.Server, "master", "", "URL of the API server, in the place of the kubeconfig's")
	fs.StringSliceVar(&f.Listen, "listen", []string{":53"}, "addresses to answer on, UDP and TCP; an empty host means all, of both families")
	fs.StringSliceVar(&f.HTTP, "http", []string{":8080", ":8181", ":9153"}, "addresses for /health, /ready and /metrics, each of them on every one")
	fs.StringVar(&f.Domain, "domain", "cluster.local", "the cluster's domain")
	fs.DurationVar(&f.TTL, "ttl", 5*time.Second, "how long answers about the cluster's names may be held")
	fs.StringVar(&f.Pods, "pods", string(zone.PodsInsecure), "names of Pods by address, 10-244-1-7.ns.pod: disabled, insecure (any address) or verified (watches all Pods)")
	fs.StringSliceVar(&f.ReverseZones, "reverse-zone", nil, "ranges whose addresses are the cluster's alone: never asked about upstream")
	fs.StringSliceVar(&f.Upstreams, "upstream", nil, "DNS servers for all other names, address or address:port (default: those of --resolv-conf)")
	fs.StringVar(&f.ResolvConf, "resolv-conf", "/etc/resolv.conf", "where the upstreams are read from, again whenever it changes")
	fs.StringArrayVar(&f.Stubs, "stub-domain", nil, "other servers for a domain, as domain=address[:port][,...]; may be repeated")
	fs.BoolVar(&f.NoForward, "no-forward", false, "answer for the cluster's names only and refuse others")
	fs.IntVar(&f.CacheSize, "cache-size", 10_000, "how many upstream answers to keep")
	fs.DurationVar(&f.ServeStale, "serve-stale", time.Hour, "how long past its end an answer is told when no upstream answers; negative for never")
	fs.IntVar(&f.MaxConcurrent, "max-concurrent", 4096, "how many questions to upstreams may be under way")
	fs.IntVar(&f.PerClient, "max-per-client", 256, "how many of them one asker's address may have")
	fs.IntVar(&f.MaxUDPSize, "max-udp-size", 1232, "largest answer over UDP, in bytes")
	fs.DurationVar(&f.Lameduck, "lameduck", 5*time.Second, "how long to go on answering, not ready any more, after being told to stop")
	fs.StringSliceVar(&f.ServiceIPs, "service-ip", nil, "ClusterIPs that lead to this DNS, so that it never takes itself for an upstream")
	fs.StringVar(&f.LogLevel, "log-level", "info", "debug, info, warn or error")
}

// Options makes options of the flags, with a client of its own and a logger to
// standard error. The error names every flag that is wrong.
func (f *Flags) Options() (Options, error) {
	var errs []error
	fail := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	o := Options{HTTP: f.HTTP, Domain: f.Domain, Pods: zone.PodNames(f.Pods), ResolvConf: f.ResolvConf,
		NoForward: f.NoForward, CacheSize: f.CacheSize, ServeStale: f.ServeStale, MaxConcurrent: f.MaxConcurrent,
		PerClient: f.PerClient, MaxUDPSize: f.MaxUDPSize, Lameduck: f.Lameduck}
	if f.ServeStale == 0 {
		o.ServeStale = -1
	}
	if f.TTL < time.Second || f.TTL > time.Hour || f.TTL%time.Second != 0 {
		fail("ttl", "%v is not whole seconds between 1s and 1h", f.TTL)
	}
	o.TTL = uint32(f.TTL / time.Second)
	for _, s := range f.Listen {
		a, err := parseListen(s)
		if err != nil {
			fail("listen", "%v", err)
		}
		o.Addrs = append(o.Addrs, a)
	}
	for _, s := range f.ReverseZones {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			fail("reverse-zone", "%q is not a range such as 10.96.0.0/16", s)
		}
		o.ReverseZones = append(o.ReverseZones, p.Masked())
	}
	for _, s := range f.Upstreams {
		a, err := ParseUpstream(s)
		if err != nil {
			fail("upstream", "%v", err)
		}
		o.Upstreams = append(o.Upstreams, a)
	}
	for _, s := range f.Stubs {
		domain, list, ok := strings.Cut(s, "=")
		if !ok || domain == "" || list == "" {
			fail("stub-domain", "%q is not domain=address[,...]", s)
			continue
		}
		if o.Stubs == nil {
			o.Stubs = map[string][]netip.AddrPort{}
		}
		for part := range strings.SplitSeq(list, ",") {
			a, err := ParseUpstream(part)
			if err != nil {
				fail("stub-domain", "%s: %v", domain, err)
			}
			o.Stubs[domain] = append(o.Stubs[domain], a)
		}
	}
	for _, s := range f.ServiceIPs {
		a, err := netip.ParseAddr(s)
		if err != nil {
			fail("service-ip", "%q is not an IP address", s)
		}
		o.ServiceIPs = append(o.ServiceIPs, a)
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.LogLevel)); err != nil {
		fail("log-level", "%q is not debug, info, warn or error", f.LogLevel)
	}
	if err := errors.Join(errs...); err != nil {
		return Options{}, err
	}
	o.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	cfg, err := clientcmd.BuildConfigFromFlags(f.Server, f.Kubeconfig)
	if err != nil {
		return Options{}, fmt.Errorf("no way to the API; give it by --kubeconfig: %w", err)
	}
	// Services and slices of a large cluster are a third smaller, and quicker to read, this way.
	cfg.ContentType = "application/vnd.kubernetes.protobuf"
	cfg.AcceptContentTypes = cfg.ContentType + ",application/json"
	cfg.UserAgent = "fairway-dns"
	if o.Client, err = kubernetes.NewForConfig(cfg); err != nil {
		return Options{}, fmt.Errorf("client for the API: %w", err)
	}
	return o, nil
}

// ParseUpstream reads an address with or without a port; 53 is the usual one.
func ParseUpstream(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return a, fmt.Errorf("%q is not an address such as 192.0.2.53 or [2001:db8::53]:5353", s)
	}
	return a, nil
}

// parseListen reads "host:port", the host an address or nothing.
func parseListen(s string) (netip.AddrPort, error) {
	if port, ok := strings.CutPrefix(s, ":"); ok {
		host := "[::]" // answers IPv4 too
		if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
			host = "0.0.0.0"
		}
		s = host + ":" + port
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return a, fmt.Errorf("%q is not an address and port such as :53 or 192.0.2.1:53", s)
	}
	return a, nil
}
