package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"fairway.dev/fairway/internal/node/agent"
	"fairway.dev/fairway/internal/node/lifecycle"
	"fairway.dev/fairway/internal/node/network"
	"fairway.dev/fairway/internal/node/podspec"
	"fairway.dev/fairway/internal/node/server"
	"fairway.dev/fairway/internal/node/volumes"
)

// machine is one node through all its states of power.
type machine struct {
	n     *Nodes
	index int
	name  string
	zone  string
	power chan Power // capacity 1, the newest wish
}

// wish replaces what was wished before and is not yet done.
func (m *machine) wish(p Power) {
	for {
		select {
		case m.power <- p:
			return
		default:
		}
		select {
		case <-m.power:
		default:
		}
	}
}

// powerHandler passes what Nodes' annotations say on to their machines.
func powerHandler(machines map[string]*machine) cache.ResourceEventHandler {
	pass := func(o any) {
		if n, ok := o.(*v1.Node); ok && machines[n.Name] != nil {
			machines[n.Name].wish(powerOf(n))
		}
	}
	return cache.ResourceEventHandlerFuncs{AddFunc: pass, UpdateFunc: func(_, o any) { pass(o) }}
}

func (m *machine) log() *slog.Logger { return m.n.opts.Logger.With("node", m.name) }

// run follows the wishes until ctx ends.
func (m *machine) run(ctx context.Context) {
	want := On
	if o, ok, _ := m.n.ctl.nodes.GetStore().GetByKey(m.name); ok {
		want = powerOf(o.(*v1.Node))
	}
	var stop func(lose bool)
	is := Off
	defer func() {
		if stop != nil {
			stop(false)
		}
	}()
	for {
		if want != is {
			next, err := m.change(ctx, is, want, &stop)
			if err != nil && ctx.Err() == nil {
				m.log().Error("cannot change a node's power", "from", is, "to", want, "err", err)
				select {
				case <-ctx.Done():
					return
				case want = <-m.power:
				case <-time.After(2 * time.Second):
				}
				continue
			}
			if is = next; ctx.Err() == nil {
				m.log().Info("node", "power", is)
			}
		}
		select {
		case <-ctx.Done():
			return
		case want = <-m.power:
		}
	}
}

// change brings the node from one state to another and answers with the state
// that it is in then.
func (m *machine) change(ctx context.Context, is, want Power, stop *func(bool)) (Power, error) {
	if want == Off {
		(*stop)(true)
		*stop = nil
		return Off, nil
	}
	if *stop == nil {
		s, nd, err := m.start(ctx)
		if err != nil {
			return is, err
		}
		*stop = s
		if !m.n.opts.Host {
			if err := nd.SetCable(want != Cut); err != nil {
				return On, err
			}
		}
		return want, nil
	}
	nd := m.n.net.Node(m.index)
	if nd == nil {
		return is, fmt.Errorf("node %s has no network", m.name)
	}
	return want, nd.SetCable(want != Cut)
}

// start gives the node power. stop(true) is a power failure: everything on it
// ends at once; stop(false) leaves it running for the next process.
func (m *machine) start(ctx context.Context) (stop func(lose bool), _ *network.Node, _ error) {
	o := &m.n.opts
	nd, err := m.n.net.AddNode(m.index, m.name)
	if err != nil {
		return nil, nil, err
	}
	h := Handle{Name: m.name, Zone: m.zone, NetNS: nd.NS, Addrs: nd.Addrs, PodCIDRs: nd.PodCIDRs, MTU: m.n.net.MTU()}
	if !o.Host {
		h.Link, h.apiURL = "eth0", o.APIFromNodes
	}
	dir := o.dir(m.name)
	fail := func(err error) (func(bool), *network.Node, error) {
		m.n.net.ReleaseNode(nd)
		return nil, nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "pods"), 0o700); err != nil {
		return fail(err)
	}
	cfg, err := o.ClientConfig(m.name)
	if err != nil {
		return fail(err)
	}
	cfg = rest.AddUserAgent(h.FromNode(cfg), "node")
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(&typedv1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	mgr := lifecycle.New(lifecycle.Config{
		Node: m.name, HostIPs: nd.Addrs, Net: nd, Dial: nd.NS.DialContext, Client: client, Objects: volumes.NewObjects(client, 30*time.Second),
		Services: m.n.ctl.servicesOf, RuntimeFor: m.n.runtimeFor, Runtimes: m.n.runtimes,
		Allocatable: agent.Capacity(o.MaxPods),
		DNS:         podspec.DNS{Servers: o.ClusterDNS, Domain: o.ClusterDomain},
		Unrouted:    m.n.ctl.leave, Dir: filepath.Join(dir, "pods"),
		Recorder: broadcaster.NewRecorder(scheme.Scheme, v1.EventSource{Component: "kubelet", Host: m.name}),
		Logger:   m.log(),
	})
	var wg sync.WaitGroup
	if o.OnNode != nil {
		wg.Go(func() { o.OnNode(ctx, h) })
	}
	wg.Go(func() {
		if err := mgr.Run(ctx); err != nil && ctx.Err() == nil {
			m.log().Error("Pods are not run", "err", err)
		}
	})
	if o.ServingCert != nil {
		srv := &server.Server{Node: m.name, Pods: mgr, NS: nd.NS, Addrs: nd.Addrs, ClientCAs: o.ClientCAs, Access: m.n.ctl.client,
			Cert: o.ServingCert, Logger: m.log()}
		wg.Go(func() { srv.Run(ctx) })
	}
	wg.Go(func() {
		a := agent.New(client, agent.Facts{Name: m.name, Addrs: nd.Addrs, PodCIDRs: nd.PodCIDRs, Zone: m.zone, ServerPort: server.Port,
			Version: o.Version, Runtime: m.n.cri.version(), BootID: boot(dir), MaxPods: o.MaxPods}, o.Logger)
		if a.Register(ctx) == nil {
			a.Run(ctx)
		}
	})
	return func(lose bool) {
		cancel()
		broadcaster.Shutdown()
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(limit):
			m.log().Warn("what runs on the node does not stop; going on without waiting")
		}
		if !lose {
			m.n.net.ReleaseNode(nd)
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		err := errors.Join(mgr.Destroy(ctx), m.n.net.RemoveNode(nd))
		os.Remove(filepath.Join(dir, "boot-id")) //nolint:errcheck // then it keeps its boot ID
		if err != nil {
			m.log().Error("a node that lost power has left something", "err", err)
		}
	}, nd, nil
}

// boot returns the ID of the node's present run, made when it got power.
func boot(dir string) string {
	file := filepath.Join(dir, "boot-id")
	if b, err := os.ReadFile(file); err == nil {
		return string(b)
	}
	id := uuid.NewString()
	os.WriteFile(file, []byte(id), 0o600) //nolint:errcheck // then the next process makes another
	return id
}

func noClient(string) (*rest.Config, error) { return nil, errors.New("no client") }

func removeVolumes(dir string) error { return volumes.Remove(dir) }
