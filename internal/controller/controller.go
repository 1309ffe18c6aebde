package controller

import (
	"context"
	"crypto"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/klog/v2"

	"fairway.dev/fairway/internal/controller/endpoints"
)

// Users whose rights the parts need; each upstream controller is the
// ServiceAccount of its row in kube-system, or ManagerUser. Upstream's bootstrap policy knows
// all of them but the endpoints user.
const (
	ManagerUser   = "system:kube-controller-manager" // reads for the shared caches
	EndpointsUser = "system:fairway:endpoints"
)

// Options configure [Run].
type Options struct {
	// ClientConfig returns a client configuration for a user. It is asked for
	// ManagerUser, EndpointsUser and one ServiceAccount for each controller.
	ClientConfig func(user string, groups ...string) (*rest.Config, error)

	// RootCA is what is published to every namespace as the ConfigMap
	// kube-root-ca.crt, PEM. Empty: none is.
	RootCA []byte
	// TokenKey signs the tokens of Secrets of type
	// kubernetes.io/service-account-token. Nil: they get none.
	TokenKey crypto.PrivateKey

	// Nodes says when a Node counts as lost. Zero fields take the defaults of
	// [NodeTimes].
	Nodes NodeTimes

	// Without names rows of the table not to run, or "endpoints".
	Without []string

	Logger *slog.Logger
}

// NodeTimes say when a Node counts as lost.
type NodeTimes struct {
	// Monitor is how often Nodes are looked at. Default 1 s.
	Monitor time.Duration
	// Grace is how long a Node may be silent before its condition Ready becomes
	// Unknown and its Pods leave the endpoints. It must be several times the
	// period at which agents renew their leases. Default 20 s.
	Grace time.Duration
	// StartupGrace is the same for a Node that has just registered. Default 60 s.
	StartupGrace time.Duration
}

// env is what a row of the table may use to make its controller.
type env struct {
	Options
	informers  informers.SharedInformerFactory
	everything *mixedInformers
	started    chan struct{} // closed when the caches have been started
	mapper     *restmapper.DeferredDiscoveryRESTMapper
	metadata   metadata.Interface

	// This row's own:
	config *rest.Config
	client kubernetes.Interface
}

// Run starts all controllers and works until ctx ends; it returns when all
// have stopped. Its error is one of the start: it then has started nothing.
func Run(ctx context.Context, opts Options) error {
	opts.Nodes.setDefaults()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	quiet := logr.FromSlogHandler(lower{opts.Logger.Handler()})
	ctx = klog.NewContext(ctx, quiet)

	shared, err := opts.ClientConfig(ManagerUser)
	if err != nil {
		return fmt.Errorf("controllers: client configuration of %s: %w", ManagerUser, err)
	}
	e, err := newEnv(ctx, opts, shared)
	if err != nil {
		return err
	}
	type running struct {
		name string
		run  func(context.Context)
	}
	var all []running
	for _, row := range table {
		if opts.without(row.name) {
			continue
		}
		run, err := e.build(klog.NewContext(ctx, quiet.WithName(row.name)), row)
		if err != nil {
			return fmt.Errorf("controller %s: %w", row.name, err)
		}
		if run != nil {
			all = append(all, running{row.name, run})
		}
	}
	if !opts.without("endpoints") {
		own, err := e.endpoints()
		if err != nil {
			return err
		}
		all = append(all, running{"endpoints", own.Run})
	}

	e.informers.Start(ctx.Done())
	e.everything.metadata.Start(ctx.Done())
	close(e.started)
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(func() { c.run(klog.NewContext(ctx, quiet.WithName(c.name))) })
	}
	opts.Logger.Info("controllers run", "number", len(all))
	wg.Wait()
	cancel()
	e.informers.Shutdown()
	e.everything.metadata.Shutdown()
	return nil
}

func newEnv(ctx context.Context, opts Options, shared *rest.Config) (*env, error) {
	client, err := kubernetes.NewForConfig(forBuiltins(shared))
	if err != nil {
		return nil, fmt.Errorf("controllers: client: %w", err)
	}
	meta, err := metadata.NewForConfig(shared)
	if err != nil {
		return nil, fmt.Errorf("controllers: metadata client: %w", err)
	}
	resources, err := discovery.NewDiscoveryClientForConfig(shared)
	if err != nil {
		return nil, fmt.Errorf("controllers: discovery client: %w", err)
	}
	e := &env{
		Options:   opts,
		informers: informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(trim)),
		started:   make(chan struct{}),
		mapper:    restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(resources)),
		metadata:  meta,
	}
	e.everything = &mixedInformers{
		typed:    e.informers,
		metadata: metadatainformer.NewSharedInformerFactoryWithOptions(meta, 0, metadatainformer.WithTransform(trim)),
	}
	// New kinds of resources (CustomResourceDefinitions) come up without a word.
	go wait.Until(e.mapper.Reset, 30*time.Second, ctx.Done())
	return e, nil
}

// build makes one row's controller under the row's own identity.
func (e *env) build(ctx context.Context, row row) (func(context.Context), error) {
	own := *e
	var err error
	if row.account == "" {
		own.config, err = e.ClientConfig(ManagerUser)
	} else {
		own.config, err = e.ClientConfig("system:serviceaccount:kube-system:"+row.account,
			"system:serviceaccounts", "system:serviceaccounts:kube-system")
	}
	if err != nil {
		return nil, fmt.Errorf("client configuration: %w", err)
	}
	own.client, err = kubernetes.NewForConfig(forBuiltins(own.config))
	if err != nil {
		return nil, err
	}
	return row.build(ctx, &own)
}

// endpoints makes our own controller on the shared caches.
func (e *env) endpoints() (*endpoints.Controller, error) {
	config, err := e.ClientConfig(EndpointsUser)
	if err != nil {
		return nil, fmt.Errorf("endpoints: client configuration: %w", err)
	}
	config = forBuiltins(config)
	config.QPS = -1
	config.WarningHandler = rest.NoWarnings{} // v1 Endpoints are deprecated, we know
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("endpoints: client: %w", err)
	}
	core := e.informers.Core().V1()
	c, err := endpoints.New(endpoints.Options{
		Client: client,
		Informers: endpoints.Informers{
			Services:  core.Services(),
			Pods:      core.Pods(),
			Nodes:     core.Nodes(),
			Endpoints: core.Endpoints(),
			Slices:    e.informers.Discovery().V1().EndpointSlices(),
		},
		Logger: e.Logger.With("controller", "endpoints"),
	})
	if err != nil {
		return nil, fmt.Errorf("endpoints: %w", err)
	}
	return c, nil
}

func (o *Options) without(name string) bool {
	for _, w := range o.Without {
		if w == name {
			return true
		}
	}
	return false
}

func (t *NodeTimes) setDefaults() {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&t.Monitor, time.Second}, {&t.Grace, 20 * time.Second}, {&t.StartupGrace, time.Minute}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
}

// forBuiltins speaks protobuf, which Kubernetes' own types have and which
// costs a fraction of JSON.
func forBuiltins(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	return config
}
