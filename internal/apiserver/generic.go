package apiserver

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	apiserverapi "k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/pkg/server/filters"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/util/openapi"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	aggregatorscheme "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/common/restfuladapter"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	controlplane "k8s.io/kubernetes/pkg/controlplane/apiserver"
	"k8s.io/kubernetes/pkg/controlplane/apiserver/options"
	generatedopenapi "k8s.io/kubernetes/pkg/generated/openapi"
	"k8s.io/kubernetes/pkg/kubeapiserver"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"

	"fairway.dev/fairway/internal/apiserver/pki"
)

// informerResync is upstream's for the server's own informers.
const informerResync = 10 * time.Minute

// genericParts are what the three servers of the chain have in common.
type genericParts struct {
	config    *genericapiserver.Config
	informers informers.SharedInformerFactory
	storage   *serverstorage.DefaultStorageFactory
}

// buildGeneric turns upstream's options into what the servers of the chain are
// made from: who may connect, who they are, what they may do, and where things
// are stored. It differs from upstream's function of that purpose in how the
// server's own client is trusted (see ownClient) and in who may be anonymous.
func buildGeneric(ctx context.Context, opts options.CompletedOptions, ca *pki.Authority) (*genericParts, error) {
	config := genericapiserver.NewConfig(legacyscheme.Codecs)
	config.MergedResourceConfig = servedVersions()
	if err := opts.GenericServerRunOptions.ApplyTo(config); err != nil {
		return nil, err
	}
	config.EffectiveVersion = servedVersion{config.EffectiveVersion}
	if err := opts.SecureServing.SecureServingOptions.ApplyTo(&config.SecureServing); err != nil {
		return nil, err
	}
	if err := ownClient(config, ca); err != nil {
		return nil, fmt.Errorf("the server's own client: %w", err)
	}
	client, err := kubernetes.NewForConfig(config.LoopbackClientConfig)
	if err != nil {
		return nil, err
	}
	shared := informers.NewSharedInformerFactoryWithOptions(client, informerResync, informers.WithTransform(withoutManagedFields))
	if err := opts.Features.ApplyTo(config, client, shared); err != nil {
		return nil, err
	}
	if err := opts.APIEnablement.ApplyTo(config, config.MergedResourceConfig, legacyscheme.Scheme); err != nil {
		return nil, err
	}
	config.LongRunningFunc = filters.BasicLongRunningRequestCheck(
		sets.NewString("watch", "proxy"),
		sets.NewString("attach", "exec", "proxy", "log", "portforward"),
	)
	describe(config, generatedopenapi.GetOpenAPIDefinitions)

	storage, err := buildStorage(opts, config)
	if err != nil {
		return nil, fmt.Errorf("storage: %w", err)
	}
	err = opts.Authentication.ApplyTo(ctx, &config.Authentication, config.SecureServing, nil,
		config.OpenAPIConfig, config.OpenAPIV3Config, client, shared, config.APIServerID)
	if err != nil {
		return nil, fmt.Errorf("authentication: %w", err)
	}
	allowAnonymous(config)
	config.Authorization.Authorizer, config.RuleResolver, _, err = controlplane.BuildAuthorizer(ctx, opts, nil, config.APIServerID, shared)
	if err != nil {
		return nil, fmt.Errorf("authorization: %w", err)
	}
	if err := opts.Audit.ApplyTo(config); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	config.AggregatedDiscoveryGroupManager = aggregated.NewResourceManager("apis")
	// We do these ourselves: see installPolicy and installPriorityClasses.
	config.DisabledPostStartHooks.Insert(rbacrest.PostStartHookName, schedulingrest.PostStartHookName)
	return &genericParts{config: config, informers: shared, storage: storage}, nil
}

// ownClient makes the configuration by which the server talks to itself: over
// its first listening address, with a token that only this process knows, and
// with a certificate of its own so that it does not matter which names the serving
// certificate has. Upstream makes an RSA key for it, which takes a tenth of a
// second.
func ownClient(config *genericapiserver.Config, ca *pki.Authority) error {
	pair, err := ca.Server("apiserver-loopback-client", []string{genericapiserver.LoopbackClientServerNameOverride}, nil)
	if err != nil {
		return err
	}
	cert, err := dynamiccertificates.NewStaticSNICertKeyContent("loopback", pair.Cert, pair.Key, genericapiserver.LoopbackClientServerNameOverride)
	if err != nil {
		return err
	}
	config.SecureServing.SNICerts = append([]dynamiccertificates.SNICertKeyContentProvider{cert}, config.SecureServing.SNICerts...)
	config.LoopbackClientConfig, err = config.SecureServing.NewLoopbackClientConfig(rand.Text(), ca.CertPEM)
	if err != nil {
		return err
	}
	config.LoopbackClientConfig.ContentType = runtime.ContentTypeProtobuf
	config.LoopbackClientConfig.DisableCompression = true
	return nil
}

// describe sets from what a server's OpenAPI documents are made: the
// definitions of at least the types that it serves.
func describe(config *genericapiserver.Config, definitions common.GetOpenAPIDefinitions) {
	namer := openapinamer.NewDefinitionNamer(legacyscheme.Scheme, apiextensions.Scheme, aggregatorscheme.Scheme)
	definitions = openapi.GetOpenAPIDefinitionsWithoutDisabledFeatures(definitions)
	config.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(definitions, namer)
	config.OpenAPIConfig.Info.Title = "Kubernetes"
	config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(definitions, namer)
	config.OpenAPIV3Config.Info.Title = "Kubernetes"
	// Without these, upstream's builder puts functions of its own here, and
	// they keep the builder and the definitions of all types in memory, twice 10 MB.
	config.OpenAPIConfig.GetOperationIDAndTagsFromRoute = operationIDAndTags
	config.OpenAPIV3Config.GetOperationIDAndTagsFromRoute = operationIDAndTags
}

func operationIDAndTags(r common.Route) (string, []string, error) {
	route, ok := r.(*restfuladapter.RouteAdapter)
	if !ok {
		return "", nil, fmt.Errorf("route %s is a %T, not a restful one", r.Path(), r)
	}
	return openapinamer.GetOperationIDAndTags(route.Route)
}

// buildStorage says how every resource is encoded and where it is stored.
func buildStorage(opts options.CompletedOptions, config *genericapiserver.Config) (*serverstorage.DefaultStorageFactory, error) {
	opts.Etcd.StorageConfig.Transport.TracerProvider = config.TracerProvider
	factory := kubeapiserver.NewStorageFactoryConfigEffectiveVersion(config.EffectiveVersion)
	factory.APIResourceConfig = config.MergedResourceConfig
	factory.DefaultResourceEncoding.SetEffectiveVersion(config.EffectiveVersion)
	storage, err := factory.Complete(opts.Etcd).New()
	if err != nil {
		return nil, err
	}
	storage.StorageConfig.StorageObjectCountTracker = config.StorageObjectCountTracker
	return storage, opts.Etcd.ApplyWithStorageFactoryTo(storage, config)
}

// allowAnonymous lets requests without credentials see whether the server
// lives and which version it is. Every other one gets 401.
func allowAnonymous(c *genericapiserver.Config) {
	c.Authentication.Authenticator = union.New(c.Authentication.Authenticator, anonymous.NewAuthenticator([]apiserverapi.AnonymousAuthCondition{
		{Path: "/livez"}, {Path: "/readyz"}, {Path: "/healthz"}, {Path: "/version"},
	}))
}

// withoutManagedFields keeps what nobody in the server reads out of its informers' caches.
func withoutManagedFields(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil && m.GetManagedFields() != nil {
		m.SetManagedFields(nil)
	}
	return obj, nil
}
