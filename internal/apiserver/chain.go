package apiserver

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	crdopenapi "k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	genericfilters "k8s.io/apiserver/pkg/endpoints/filters"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/util/notfoundhandler"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/kubernetes"
	restclient "k8s.io/client-go/rest"
	aggregator "k8s.io/kube-aggregator/pkg/apiserver"
	aggregatoropenapi "k8s.io/kube-aggregator/pkg/generated/openapi"
	"k8s.io/kubernetes/pkg/capabilities"
	controlplane "k8s.io/kubernetes/pkg/controlplane/apiserver"
	"k8s.io/kubernetes/pkg/controlplane/apiserver/options"
	kubeadmission "k8s.io/kubernetes/pkg/kubeapiserver/admission"

	"fairway.dev/fairway/internal/apiserver/pki"
)

// dialer is a way to the embedded store.
type dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// chain is a server that is ready to run.
type chain struct {
	// run serves until the context ends and everything has stopped.
	run func(context.Context) error
	// loopback is how the server talks to itself.
	loopback *restclient.Config
}

// buildChain makes the three servers that answer a request in turn: API
// services, then built-in resources, then custom resources. Nothing runs yet
// but the reloading of files, until ctx ends. What cannot do without comes to
// fail when it runs, it tells fail.
func buildChain(ctx context.Context, o Options, upstream *options.Options, ca *pki.Authority, sec secrets, fail func(error)) (*chain, error) {
	opts, err := upstream.Complete(ctx, nil, nil)
	if err != nil {
		return nil, err
	}
	capabilities.Setup(true, 0)
	parts, err := buildGeneric(ctx, opts, ca)
	if err != nil {
		return nil, err
	}
	generic := parts.config

	kubeInitializers, err := (&kubeadmission.Config{}).New()
	if err != nil {
		return nil, err
	}
	slices, err := proxy.NewEndpointSliceIndexerGetter(parts.informers.Discovery().V1().EndpointSlices())
	if err != nil {
		return nil, err
	}
	loopback, err := url.Parse(generic.LoopbackClientConfig.Host)
	if err != nil {
		return nil, err
	}
	// Webhooks and aggregated servers are dialled at their endpoints: the
	// machine itself need not be able to reach ClusterIPs.
	resolver := aggregator.NewLoopbackServiceResolver(
		aggregator.NewEndpointServiceResolver(parts.informers.Core().V1().Services().Lister(), slices), loopback)

	kubeConfig, initializers, err := controlplane.CreateConfig(opts, generic, parts.informers, slices, parts.storage, resolver, kubeInitializers)
	if err != nil {
		return nil, err
	}
	authInfo := webhook.NewDefaultAuthenticationInfoResolverWrapper(kubeConfig.ProxyTransport, nil, generic.LoopbackClientConfig, generic.TracerProvider)
	crdConfig, err := controlplane.CreateAPIExtensionsConfig(*generic, parts.informers, initializers, opts, 1, resolver, authInfo)
	if err != nil {
		return nil, err
	}
	aggregatorConfig, err := controlplane.CreateAggregatorConfig(*generic, opts, parts.informers, resolver, kubeConfig.ProxyTransport, nil, initializers)
	if err != nil {
		return nil, err
	}
	// The built-in resources are described by lazyOpenAPI in front of the chain,
	// all others by the servers of their own, which need know no more types than those.
	var lazy *lazyOpenAPI
	generic.SkipOpenAPIInstallation = true
	describe(&crdConfig.GenericConfig.Config, crdopenapi.GetOpenAPIDefinitions)
	describe(&aggregatorConfig.GenericConfig.Config, aggregatoropenapi.GetOpenAPIDefinitions)
	aggregatorConfig.GenericConfig.BuildHandlerChainFunc = func(h http.Handler, c *genericapiserver.Config) http.Handler {
		return genericapiserver.DefaultBuildHandlerChain(lazy.around(h), c)
	}

	notFound := notfoundhandler.New(generic.Serializer, genericfilters.NoMuxAndDiscoveryIncompleteKey)
	crds, err := crdConfig.Complete().New(genericapiserver.NewEmptyDelegateWithCustomHandler(notFound))
	if err != nil {
		return nil, fmt.Errorf("custom resources: %w", err)
	}
	completed := kubeConfig.Complete()
	kube, err := completed.New(controlplane.KubeAPIServer, crds.GenericAPIServer)
	if err != nil {
		return nil, err
	}
	if err := installResources(o, completed, kube, sec, fail); err != nil {
		return nil, err
	}
	lazy = newLazyOpenAPI(kube.GenericAPIServer.Handler.GoRestfulContainer, generic.OpenAPIConfig, generic.OpenAPIV3Config)
	first, err := controlplane.CreateAggregatorServer(aggregatorConfig.Complete(), kube.GenericAPIServer,
		crds.Informers.Apiextensions().V1().CustomResourceDefinitions(), true, priorities())
	if err != nil {
		return nil, err
	}
	first.GenericAPIServer.ShutdownTimeout = stopLimit
	prepared, err := first.PrepareRun()
	if err != nil {
		return nil, err
	}
	// The definitions of all types, 10 MB, are not needed any more; lazyOpenAPI
	// has them made anew.
	generic.OpenAPIV3Config.Definitions = nil
	return &chain{run: prepared.Run, loopback: generic.LoopbackClientConfig}, nil
}

// stopLimit is how long a server that stops waits for connections to become
// idle, after the requests that it can end have ended. Upstream waits a minute; a connection to a
// machine that is gone (a node whose cable is cut) never becomes idle.
const stopLimit = 3 * time.Second

// installResources puts the table of resources.go into the server, and what
// has to be in the store for it to work.
func installResources(o Options, config controlplane.CompletedConfig, kube *controlplane.Server, sec secrets, fail func(error)) error {
	client, err := kubernetes.NewForConfig(config.Generic.LoopbackClientConfig)
	if err != nil {
		return err
	}
	core := &coreGroup{
		base:       config.NewCoreGenericConfig(),
		client:     client,
		authorizer: config.Generic.Authorization.Authorizer,
		kubelet:    kubeletClient(sec),
		transport:  config.ProxyTransport,
		services:   newServices(o, config, kube, client),
	}
	if err := kube.InstallAPIs(storageProviders(&storageNeeds{config: config, client: client, core: core})...); err != nil {
		return err
	}
	installPolicy(kube.GenericAPIServer, client, fail)
	installPriorityClasses(kube.GenericAPIServer, client, fail)
	return keepKubernetesService(o, config, kube, client)
}
