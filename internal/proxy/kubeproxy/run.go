package kubeproxy

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/kube-proxy/config/v1alpha1"
	"sigs.k8s.io/yaml"

	"fairway.dev/fairway/internal/proxy"
	"fairway.dev/fairway/internal/proxy/nft"
	"fairway.dev/fairway/internal/proxy/source"
)

func flagNames(fs *pflag.FlagSet) (names []string) {
	fs.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return names
}

// Run does what the command line says, until ctx ends. Logs go to out.
func (o *Options) Run(ctx context.Context, out io.Writer) error {
	s, err := o.Settings()
	if err != nil {
		return err
	}
	log := s.logger(out)
	for _, w := range s.Warnings {
		log.Warn(w)
	}
	switch {
	case o.WriteConfigTo != "":
		return o.writeConfig()
	case o.Cleanup:
		if err := nft.Cleanup(ctx, nil, ""); err != nil {
			return fmt.Errorf("--cleanup: %w", err)
		}
		log.Info("removed everything the proxy had put into the kernel")
		return nil
	}
	for _, err := range s.applyKernelSettings() {
		log.Warn("kernel setting left as it is", "err", err)
	}
	if o.InitOnly {
		return nil
	}
	return s.run(ctx, log, o)
}

func (s *Settings) logger(out io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{}
	if s.Debug {
		opts.Level = slog.LevelDebug
	}
	if s.JSONLogs {
		return slog.New(slog.NewJSONHandler(out, opts))
	}
	return slog.New(slog.NewTextHandler(out, opts))
}

func (o *Options) writeConfig() error {
	c := o.fromFlags
	c.APIVersion, c.Kind = "kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration"
	b, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.WriteConfigTo, b, 0o644); err != nil {
		return fmt.Errorf("--write-config-to: %w", err)
	}
	return nil
}

func (s *Settings) run(ctx context.Context, log *slog.Logger, o *Options) error {
	cfg := s.Proxy
	cfg.Logger = log
	var err error
	if cfg.NodeName, err = s.nodeName(); err != nil {
		return err
	}
	restConfig, err := s.restConfig(o.Master)
	if err != nil {
		return err
	}
	if cfg.Source, err = source.New(source.Config{REST: restConfig, NodeName: cfg.NodeName, Logger: log}); err != nil {
		return err
	}
	programmer, err := nft.New(nft.Config{Logger: log})
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	defer programmer.Close()
	cfg.Programmer = programmer
	cfg.Lock = nft.DefaultTable
	p, err := proxy.New(cfg)
	if err != nil {
		return err
	}
	log.Info("starting", "node", cfg.NodeName, "api", restConfig.Host, "healthz", cfg.HealthzAddress, "metrics", cfg.MetricsAddress)
	stopProfile := func() {}
	if o.StartupProfile != "" {
		if stopProfile, err = profile(o.StartupProfile); err != nil {
			return fmt.Errorf("--startup-profile: %w", err)
		}
	}

	// Nearly all that is allocated until the first sync is there to stay:
	// looking through it again and again would be a quarter of the start.
	tuneGC := os.Getenv("GOGC") == ""
	if tuneGC {
		debug.SetGCPercent(200)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		cfg.Source.Run(ctx)
	}()
	go func() {
		select {
		case <-ctx.Done():
		case <-p.Synced():
			// Give back what the start needed and the rest of life does not. The
			// table lives long and grows slowly, so collecting more often from now
			// on costs little and keeps the process small.
			time.Sleep(100 * time.Millisecond)
			if tuneGC {
				debug.SetGCPercent(40)
			}
			debug.FreeOSMemory()
		}
		stopProfile()
	}()
	err = p.Run(ctx)
	cancel()
	<-done
	return err
}

func profile(path string) (stop func(), err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() { pprof.StopCPUProfile(); f.Close() }, nil
}

func (s *Settings) nodeName() (string, error) {
	if s.Hostname != "" {
		return s.Hostname, nil
	}
	name, err := os.Hostname()
	if name = strings.ToLower(strings.TrimSpace(name)); err != nil || name == "" {
		return "", fmt.Errorf("the host name cannot be had (%v): name the Node with --hostname-override", err)
	}
	return name, nil
}

// restConfig finds the API server: by kubeconfig, by --master, or from inside a
// Pod.
func (s *Settings) restConfig(master string) (*rest.Config, error) {
	if s.Kubeconfig == "" && master == "" {
		c, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("no --kubeconfig and no --master, and not in a Pod: %w", err)
		}
		return c, nil
	}
	c, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: s.Kubeconfig},
		&clientcmd.ConfigOverrides{ClusterInfo: clientcmdapi.Cluster{Server: master}}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", s.Kubeconfig, err)
	}
	return c, nil
}

// applyKernelSettings sets what kube-proxy sets: the limits and timeouts of
// connection tracking, and who is killed last when memory is short.
func (s *Settings) applyKernelSettings() (errs []error) {
	set := func(path string, v int64) {
		path = "/proc/" + path
		old, err := os.ReadFile(path)
		if err == nil && strings.TrimSpace(string(old)) == strconv.FormatInt(v, 10) {
			return
		}
		if err := os.WriteFile(path, []byte(strconv.FormatInt(v, 10)), 0o644); err != nil {
			errs = append(errs, err)
		}
	}
	if s.OOMScore != nil {
		set("self/oom_score_adj", int64(*s.OOMScore))
	}
	const nf = "sys/net/netfilter/nf_conntrack_"
	ct := s.Conntrack
	if limit := conntrackMax(ct, runtime.NumCPU()); limit > 0 {
		set(nf+"max", limit)
	}
	if d := ct.TCPEstablishedTimeout; d != nil && d.Duration > 0 {
		set(nf+"tcp_timeout_established", int64(d.Seconds()))
	}
	if d := ct.TCPCloseWaitTimeout; d != nil && d.Duration > 0 {
		set(nf+"tcp_timeout_close_wait", int64(d.Seconds()))
	}
	if ct.TCPBeLiberal {
		set(nf+"tcp_be_liberal", 1)
	}
	if ct.UDPTimeout.Duration > 0 {
		set(nf+"udp_timeout", int64(ct.UDPTimeout.Seconds()))
	}
	if ct.UDPStreamTimeout.Duration > 0 {
		set(nf+"udp_timeout_stream", int64(ct.UDPStreamTimeout.Seconds()))
	}
	return errs
}

// conntrackMax is how many connections to track; zero leaves the limit.
func conntrackMax(ct v1alpha1.KubeProxyConntrackConfiguration, cpus int) int64 {
	if ct.MaxPerCore == nil || *ct.MaxPerCore == 0 {
		return 0
	}
	limit := int64(*ct.MaxPerCore) * int64(cpus)
	if ct.Min != nil {
		limit = max(limit, int64(*ct.Min))
	}
	return limit
}
