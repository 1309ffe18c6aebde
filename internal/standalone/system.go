package standalone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"

	"fairway.dev/fairway/internal/announce"
	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/dns"
	"fairway.dev/fairway/internal/lb"
	"fairway.dev/fairway/internal/proxy/source"
)

// system is an instance being put together. Its methods are called in turn
// from one goroutine.
type system struct {
	opts     Options
	net      Network
	log      *slog.Logger
	progress *Progress
	inst     Instance

	api   *apiserver.Server
	admin kubernetes.Interface

	source *source.Source
	dns    *dns.DNS
	planes dataPlanes
	// speakers is what the nodes' announcers share.
	speakers *announce.Shared
	// pools is closed once the API knows of address pools.
	pools chan struct{}
	// lbMonitor is the load balancer's controller's.
	lbMonitor *lb.Monitor

	// stops are undone from the last to the first.
	stops []func()
}

// stop ends every part that was started.
func (s *system) stop() {
	for i := len(s.stops) - 1; i >= 0; i-- {
		s.stops[i]()
	}
	s.stops = nil
}

// wait returns when ctx ends, or when the API server ends by itself.
func (s *system) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-s.api.Done():
		if err := s.api.Err(); err != nil {
			return fmt.Errorf("the API server ended: %w", err)
		}
		return fmt.Errorf("the API server ended")
	}
}

// step runs one part of the start and shows it.
func (s *system) step(name string, f func() (string, error)) error {
	step := s.progress.Start(name)
	detail, err := f()
	if err != nil {
		step.Fail(err)
		return err
	}
	step.Done("%s", detail)
	return nil
}

// background runs a part until the system stops. A part that ends before that
// is started again, after a pause that grows, so that one fault does not take
// the rest with it.
func (s *system) background(name string, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { supervise(ctx, s.log.With("part", name), f) })
	s.stops = append(s.stops, func() {
		cancel()
		wg.Wait()
	})
}

// maxPause bounds the time between two starts of a part that keeps failing.
const maxPause = 30 * time.Second

func supervise(ctx context.Context, log *slog.Logger, f func(context.Context) error) {
	pause := 500 * time.Millisecond
	for {
		began := time.Now()
		err := f(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > maxPause {
			pause = 500 * time.Millisecond
		}
		log.Error("a part ended and is started again", "error", err, "pause", pause)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

// start brings everything up in the order in which the parts need each other.
func (s *system) start(ctx context.Context) error {
	if err := s.step("API", func() (string, error) { return s.startAPI(ctx) }); err != nil {
		return err
	}
	if err := s.step("Controllers", s.startControllers); err != nil {
		return err
	}
	if err := s.startSource(); err != nil {
		return err
	}
	if err := s.step("DNS", func() (string, error) { return s.startDNS(ctx) }); err != nil {
		return err
	}
	// Its custom resources take the API a while: nodes need not wait for them.
	type result struct {
		detail string
		err    error
	}
	pools := make(chan result, 1)
	if err := s.startSpeakers(); err != nil {
		return err
	}
	go func() {
		detail, err := s.installPools(ctx)
		pools <- result{detail, err}
	}()
	nodes := s.step("Nodes", func() (string, error) { return s.startNodes(ctx) })
	lb := s.step("Load balancer", func() (string, error) {
		r := <-pools
		if r.err == nil {
			r.err = s.startLB()
		}
		return r.detail, r.err
	})
	return errors.Join(nodes, lb)
}

// startAPI starts the API server on loopback. Nodes and Pods reach it at the
// machine's address on the node network, which the server begins to serve
// once that exists.
func (s *system) startAPI(ctx context.Context) (string, error) {
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if err := checkPortFree(loopback, s.opts.APIPort); err != nil {
		return "", err
	}
	nodePorts := apiserver.PortRange{First: uint16(s.net.NodePortMin), Last: uint16(s.net.NodePortMax)}
	o := apiserver.Options{
		DataDir:       filepath.Join(s.opts.DataDir, "apiserver"),
		Listen:        []string{netip.AddrPortFrom(loopback, uint16(s.opts.APIPort)).String()},
		ServiceCIDRs:  s.net.Services,
		NodePorts:     nodePorts,
		EtcdServers:   s.opts.EtcdServers,
		ClusterDomain: s.opts.ClusterDomain,
		EvictAfter:    evictAfter,
		Logger:        s.log.With("part", "apiserver"),
	}
	if !s.opts.Host {
		o.AdvertiseAddress = s.gateways()[0]
		for _, g := range s.gateways() {
			o.SANs = append(o.SANs, g.String())
		}
	}
	// Not ctx: the API answers until all the rest has stopped.
	server, err := apiserver.Start(context.Background(), o)
	if err != nil {
		return "", err
	}
	s.stops = append(s.stops, server.Shutdown)
	s.api = server
	s.inst.Server = server.URL()
	config, err := server.ClientConfig(apiserver.Admin())
	if err != nil {
		return "", err
	}
	if s.admin, err = kubernetes.NewForConfig(config); err != nil {
		return "", err
	}
	kubeconfig, err := server.KubeconfigFor(apiserver.Admin(), "")
	if err != nil {
		return "", err
	}
	if err := writeFileAtomic(s.opts.Kubeconfig, kubeconfig, 0o600); err != nil {
		return "", fmt.Errorf("--kubeconfig: %w", err)
	}
	return server.URL(), writeRecord(s.opts.DataDir, s.inst)
}

// gateways are the machine's own addresses on the node network: the first of
// each range.
func (s *system) gateways() []netip.Addr {
	var out []netip.Addr
	for _, p := range s.net.Nodes {
		out = append(out, p.Addr().Next())
	}
	return out
}

// announceReady tells a person what there is now and what to try.
func (s *system) announceReady() error {
	s.inst.Ready = time.Now()
	if err := writeRecord(s.opts.DataDir, s.inst); err != nil {
		return err
	}
	took := s.inst.Ready.Sub(s.inst.Started).Seconds()
	s.log.Info("ready", "seconds", took)
	p := s.progress
	p.Printf("\n%s in %s s. Try:\n\n", p.Green("Ready"), strconv.FormatFloat(took, 'f', 1, 64))
	p.Printf("  export KUBECONFIG=%s\n", s.opts.Kubeconfig)
	p.Printf("  fairway kubectl get nodes\n")
	p.Printf("  fairway kubectl create deployment web --image=host --replicas=3 -- fairway echo\n")
	p.Printf("  fairway kubectl expose deployment web --port=80 --target-port=8080\n")
	p.Printf("  fairway status\n\n")
	if p.Detached() {
		p.Printf("Stop it with: fairway down%s\n", s.dataDirFlag())
	} else {
		p.Printf("Stop it with Ctrl-C. Its log: %s\n", filepath.Join(s.opts.DataDir, LogFile))
	}
	p.End(nil)
	return nil
}

// dataDirFlag is what other commands need to find this instance.
func (s *system) dataDirFlag() string {
	if s.opts.DataDir == DefaultDataDir {
		return ""
	}
	return " --data-dir " + s.opts.DataDir
}
