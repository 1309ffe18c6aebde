package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"fairway.dev/fairway/internal/node/cgroup"
	"fairway.dev/fairway/internal/node/network"
	"fairway.dev/fairway/internal/node/runtime"
	"fairway.dev/fairway/internal/node/runtime/process"
)

// Nodes are all nodes of this process.
type Nodes struct {
	opts    Options
	net     *network.Network
	process *process.Runtime
	cri     *criSource
	ctl     *control
}

// New makes the network and takes over what an earlier process has left
// running. Nothing talks to the API yet.
func New(o Options) (*Nodes, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.dir(""), 0o700); err != nil {
		return nil, err
	}
	net, err := network.Open(o.network())
	if err != nil {
		return nil, err
	}
	rt, err := process.New(o.processConfig())
	if err != nil {
		net.Release()
		return nil, err
	}
	return &Nodes{opts: o, net: net, process: rt, cri: newCRISource(&o)}, nil
}

func (o *Options) processConfig() process.Config {
	self, err := os.Executable()
	if err != nil {
		self = ""
	}
	return process.Config{StateDir: o.dir("process"), Cgroups: cgroup.New(o.Prefix), Self: self, Logger: o.Logger}
}

// MTU of the nodes' network.
func (n *Nodes) MTU() int { return n.net.MTU() }

// Close gives up what New has opened, for those who will not call Run. What
// runs goes on.
func (n *Nodes) Close() {
	n.cri.close()
	n.process.Close()
	n.net.Release()
}

// Run runs the nodes until ctx ends, and leaves their Pods running then.
func (n *Nodes) Run(ctx context.Context) error {
	defer n.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if n.opts.Control == nil {
		return errors.New("control configuration: none given")
	}
	client, err := kubernetes.NewForConfig(n.opts.Control)
	if err != nil {
		return err
	}
	if n.ctl, err = newControl(client, n.opts.Unrouted); err != nil {
		return err
	}
	machines := make([]*machine, n.opts.Nodes)
	for i := range machines {
		machines[i] = &machine{n: n, index: i + 1, name: n.opts.nodeName(i + 1), zone: n.opts.zone(i + 1), power: make(chan Power, 1)}
	}
	byName := map[string]*machine{}
	for _, m := range machines {
		byName[m.name] = m
	}
	if _, err := n.ctl.nodes.AddEventHandler(powerHandler(byName)); err != nil {
		return err
	}
	wg.Go(func() { n.ctl.run(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), n.ctl.nodes.HasSynced) {
		return ctx.Err()
	}
	for _, m := range machines {
		wg.Go(func() { m.run(ctx) })
	}
	<-ctx.Done()
	return nil
}

// runtimeFor is the runtime for an image: its name decides.
func (n *Nodes) runtimeFor(image string) (runtime.Runtime, error) {
	if image == process.Image {
		return n.process, nil
	}
	return n.cri.get()
}

// Cleanup ends everything that any process has run under these options and
// takes it away: containers, namespaces, links, rules, and the nodes' files. It
// needs Prefix, DataDir, the CIDRs and Host as they were, and no API.
func Cleanup(ctx context.Context, o Options) error {
	if o.ClientConfig == nil {
		o.ClientConfig = noClient
	}
	if err := o.complete(); err != nil {
		return err
	}
	errs := []error{
		process.Cleanup(o.processConfig()),
		cleanupCRI(ctx, &o),
		network.Cleanup(o.network()),
	}
	volumeDirs, _ := filepath.Glob(o.dir("*/pods/*/volumes"))
	for _, dir := range volumeDirs {
		errs = append(errs, removeVolumes(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up nodes: %w", err)
	}
	return os.RemoveAll(o.dir(""))
}

// limit is how long what runs on a node may take to stop when it loses power.
const limit = 10 * time.Second
