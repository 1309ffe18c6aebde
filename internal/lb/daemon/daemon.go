// Package daemon runs the load balancer beside a real Kubernetes API server:
// the controller that gives Services their addresses, this node's announcer,
// or both in one process. In come flags, out comes what packages lb and
// announce do.
package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"fairway.dev/fairway/internal/announce"
	"fairway.dev/fairway/internal/lb"
)

// Flags are the flags of `fairway-node lb`.
type Flags struct {
	Kubeconfig     string
	Controller     bool
	Announce       bool
	NodeName       string
	Classless      bool
	Classes        []string
	InstallCRDs    bool
	LeaseNamespace string
	LeaseDuration  time.Duration
	HeartbeatPort  uint16
	HeartbeatKey   string
	HTTP           []string
	Profiling      bool
	LogLevel       string

	usual func() bool // --http was not given
}

// Add registers the flags.
func (f *Flags) Add(fs *pflag.FlagSet) {
	fs.BoolVar(&f.Controller, "controller", true, "give Services their addresses, when it is this process's turn to lead")
	fs.BoolVar(&f.Announce, "announce", true, "announce addresses for this node by ARP and NDP")
	fs.StringVar(&f.NodeName, "node-name", os.Getenv("NODE_NAME"), "the Node this runs on; by default $NODE_NAME, else the host name")
	fs.BoolVar(&f.Classless, "classless", false, "also handle Services without a loadBalancerClass; only where no other load balancer does")
	fs.StringSliceVar(&f.Classes, "also-class", nil, "a loadBalancerClass to handle Services of too: that of a load balancer whose place this one takes; may be repeated")
	fs.BoolVar(&f.InstallCRDs, "install-crds", true, "put the definitions of IPPool and Announcer into the cluster, and update them")
	f.AddLease(fs)
	fs.DurationVar(&f.LeaseDuration, "lease-duration", 15*time.Second, "how long controllers wait for a leader that has gone silent, 3s at least; the same for all")
	fs.Uint16Var(&f.HeartbeatPort, "heartbeat-port", announce.DefaultPort, "UDP port of the announcers' heartbeats, the same on all nodes")
	fs.StringVar(&f.HeartbeatKey, "heartbeat-key-file", "", "file with a secret that signs heartbeats, the same on all nodes; without, heartbeats must come from the sending Node's internal address")
	fs.StringSliceVar(&f.HTTP, "http", []string{DefaultHTTP}, "addresses for /metrics, /healthz and /readyz, each of them on every one; empty for none; with --announce=false by default "+DefaultControllerHTTP)
	f.usual = func() bool { return !fs.Changed("http") }
	fs.BoolVar(&f.Profiling, "profiling", false, "serve /debug/pprof beside the metrics")
	fs.StringVar(&f.LogLevel, "log-level", "info", "debug, info, warn or error")
	f.AddClient(fs)
}

// AddClient registers the flag that says which API server to talk to.
func (f *Flags) AddClient(fs *pflag.FlagSet) {
	fs.StringVar(&f.Kubeconfig, "kubeconfig", "", "kubeconfig file; by default the Pod's service account, else $KUBECONFIG or ~/.kube/config")
}

// AddLease registers the flag that says where the controllers' Lease is.
func (f *Flags) AddLease(fs *pflag.FlagSet) {
	fs.StringVar(&f.LeaseNamespace, "lease-namespace", "kube-system", "namespace of the Lease by which controllers elect their leader")
}

// Config is how to reach the API server.
func (f *Flags) Config() (*rest.Config, error) {
	if f.Kubeconfig == "" {
		config, err := rest.InClusterConfig()
		if err == nil {
			return config, nil
		}
		if !errors.Is(err, rest.ErrNotInCluster) {
			return nil, fmt.Errorf("service account of this Pod: %w", err)
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = f.Kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	return config, nil
}

// Run runs what the flags ask for until ctx ends.
func (f *Flags) Run(ctx context.Context) error {
	if !f.Controller && !f.Announce {
		return errors.New("--controller=false --announce=false leaves nothing to do")
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.LogLevel)); err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	serve, err := f.addresses()
	if err != nil {
		return err
	}
	config, err := f.Config()
	if err != nil {
		return err
	}
	config.UserAgent = "fairway-node-lb"
	o := announce.Options{NodeName: f.NodeName, Port: f.HeartbeatPort, Logger: logger.With("part", "announce")}
	if f.Announce && o.NodeName == "" {
		if o.NodeName, err = os.Hostname(); err != nil {
			return fmt.Errorf("--node-name: %w", err)
		}
	}
	if f.HeartbeatKey != "" {
		key, err := os.ReadFile(f.HeartbeatKey)
		if err != nil {
			return fmt.Errorf("--heartbeat-key-file: %w", err)
		}
		if o.Key = bytes.TrimSpace(key); len(o.Key) < 16 {
			return fmt.Errorf("--heartbeat-key-file: %s has %d bytes, and a secret needs 16", f.HeartbeatKey, len(o.Key))
		}
	}
	var parts []Part
	g, ctx := errgroup.WithContext(ctx)
	if f.Controller {
		monitor := lb.NewMonitor()
		parts = append(parts, monitor)
		g.Go(func() error {
			return lb.RunController(ctx, lb.Options{
				Config: config, Classless: f.Classless, Classes: f.Classes, InstallCRDs: f.InstallCRDs,
				LeaseNamespace: f.LeaseNamespace, LeaseDuration: f.LeaseDuration, Monitor: monitor, Logger: logger.With("part", "lb"),
			})
		})
	}
	if f.Announce {
		shared, err := announce.NewShared(config, o.Logger)
		if err != nil {
			return err
		}
		o.Shared, o.Monitor = shared, announce.NewMonitor()
		parts = append(parts, o.Monitor)
		g.Go(func() error { return shared.Run(ctx) })
		g.Go(func() error { return announce.Run(ctx, o) })
	}
	if len(serve) > 0 {
		g.Go(func() error {
			Serve(ctx, new(net.ListenConfig).Listen, serve, Handler(f.Profiling, parts...), logger)
			return nil
		})
	}
	return g.Wait()
}
