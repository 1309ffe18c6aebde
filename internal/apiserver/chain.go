package apiserver

import (
	"context"
	"fmt"
	"net"
	"net/url"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	apiserverapi "k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/union"
	genericfilters "k8s.io/apiserver/pkg/endpoints/filters"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/util/notfoundhandler"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	aggregator "k8s.io/kube-aggregator/pkg/apiserver"
	aggregatorscheme "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/capabilities"
	controlplane "k8s.io/kubernetes/pkg/controlplane/apiserver"
	"k8s.io/kubernetes/pkg/controlplane/apiserver/options"
	generatedopenapi "k8s.io/kubernetes/pkg/generated/openapi"
	kubeadmission "k8s.io/kubernetes/pkg/kubeapiserver/admission"
	corerest "k8s.io/kubernetes/pkg/registry/core/rest"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"
)

// dialer is a way to the embedded store.
type dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// buildChain makes the three servers that answer a request in turn (API
// services, then built-in resources, then custom resources) and returns the
// first, ready to run. Nothing runs yet but the reloading of files.
func buildChain(ctx context.Context, o Options, upstream *options.Options, sec secrets) (*aggregator.APIAggregator, error) {
	opts, err := upstream.Complete(ctx, nil, nil)
	if err != nil {
		return nil, err
	}
	capabilities.Setup(true, 0)

	informerName, err := cache.NewInformerName("kube-apiserver")
	if err != nil {
		return nil, err
	}
	generic, informers, storage, err := controlplane.BuildGenericConfig(opts,
		[]*runtime.Scheme{legacyscheme.Scheme, apiextensions.Scheme, aggregatorscheme.Scheme},
		servedVersions(), generatedopenapi.GetOpenAPIDefinitions, informerName)
	if err != nil {
		return nil, err
	}
	allowAnonymous(generic)
	// See installPolicy and installPriorityClasses.
	generic.DisabledPostStartHooks.Insert(rbacrest.PostStartHookName, schedulingrest.PostStartHookName)

	kubeInitializers, err := (&kubeadmission.Config{}).New()
	if err != nil {
		return nil, err
	}
	slices, err := proxy.NewEndpointSliceIndexerGetter(informers.Discovery().V1().EndpointSlices())
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
		aggregator.NewEndpointServiceResolver(informers.Core().V1().Services().Lister(), slices), loopback)

	kubeConfig, initializers, err := controlplane.CreateConfig(opts, generic, informers, slices, storage, resolver, kubeInitializers)
	if err != nil {
		return nil, err
	}
	authInfo := webhook.NewDefaultAuthenticationInfoResolverWrapper(kubeConfig.ProxyTransport, generic.EgressSelector, generic.LoopbackClientConfig, generic.TracerProvider)
	crdConfig, err := controlplane.CreateAPIExtensionsConfig(*generic, informers, initializers, opts, 1, resolver, authInfo)
	if err != nil {
		return nil, err
	}
	aggregatorConfig, err := controlplane.CreateAggregatorConfig(*generic, opts, informers, resolver, kubeConfig.ProxyTransport, nil, initializers)
	if err != nil {
		return nil, err
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
	if err := installResources(o, completed, kube, sec); err != nil {
		return nil, err
	}
	return controlplane.CreateAggregatorServer(aggregatorConfig.Complete(), kube.GenericAPIServer,
		crds.Informers.Apiextensions().V1().CustomResourceDefinitions(), true, priorities())
}

// installResources puts the table of resources.go into the server, and what
// keeps default/kubernetes and the default ServiceCIDR.
func installResources(o Options, config controlplane.CompletedConfig, kube *controlplane.Server, sec secrets) error {
	client, err := kubernetes.NewForConfig(config.Generic.LoopbackClientConfig)
	if err != nil {
		return err
	}
	services := corerest.ServicesConfig{
		ClusterIPRange:   ipNet(o.ServiceCIDRs[0]),
		NodePortRange:    utilnet.PortRange{Base: int(o.NodePorts.First), Size: o.NodePorts.size()},
		IPRepairInterval: repairInterval,
	}
	if len(o.ServiceCIDRs) > 1 {
		services.SecondaryClusterIPRange = ipNet(o.ServiceCIDRs[1])
	}
	core, err := corerest.New(corerest.Config{
		GenericConfig:       *config.NewCoreGenericConfig(),
		Proxy:               corerest.ProxyConfig{Transport: config.ProxyTransport, KubeletClientConfig: kubeletClient(sec)},
		Services:            services,
		EndpointSliceGetter: config.EndpointSliceGetter,
		Authorizer:          config.Generic.Authorization.Authorizer,
	}, config.Generic.Authorization.Authorizer)
	if err != nil {
		return err
	}
	if err := kube.InstallAPIs(storageProviders(&storageNeeds{config: config, client: client, core: core})...); err != nil {
		return err
	}
	installPolicy(kube.GenericAPIServer)
	installPriorityClasses(kube.GenericAPIServer)
	return keepKubernetesService(o, config, kube, client)
}

// allowAnonymous lets requests without credentials see whether the server
// lives and which version it is. Every other one gets 401.
func allowAnonymous(c *genericapiserver.Config) {
	c.Authentication.Authenticator = union.New(c.Authentication.Authenticator, anonymous.NewAuthenticator([]apiserverapi.AnonymousAuthCondition{
		{Path: "/livez"}, {Path: "/readyz"}, {Path: "/healthz"}, {Path: "/version"},
	}))
}
