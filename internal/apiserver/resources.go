package apiserver

import (
	"k8s.io/apimachinery/pkg/runtime/schema"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/client-go/kubernetes"
	controlplane "k8s.io/kubernetes/pkg/controlplane/apiserver"
	admissionregistrationrest "k8s.io/kubernetes/pkg/registry/admissionregistration/rest"
	appsrest "k8s.io/kubernetes/pkg/registry/apps/rest"
	authenticationrest "k8s.io/kubernetes/pkg/registry/authentication/rest"
	authorizationrest "k8s.io/kubernetes/pkg/registry/authorization/rest"
	autoscalingrest "k8s.io/kubernetes/pkg/registry/autoscaling/rest"
	batchrest "k8s.io/kubernetes/pkg/registry/batch/rest"
	certificatesrest "k8s.io/kubernetes/pkg/registry/certificates/rest"
	coordinationrest "k8s.io/kubernetes/pkg/registry/coordination/rest"
	discoveryrest "k8s.io/kubernetes/pkg/registry/discovery/rest"
	eventsrest "k8s.io/kubernetes/pkg/registry/events/rest"
	networkingrest "k8s.io/kubernetes/pkg/registry/networking/rest"
	noderest "k8s.io/kubernetes/pkg/registry/node/rest"
	policyrest "k8s.io/kubernetes/pkg/registry/policy/rest"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	resourcerest "k8s.io/kubernetes/pkg/registry/resource/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"
	storagerest "k8s.io/kubernetes/pkg/registry/storage/rest"
)

// provider makes the storage of one API group.
type provider = controlplane.RESTStorageProvider

// apiGroup is a row of the table of what the server serves: one group.
type apiGroup struct {
	name string
	// order places the group among all: higher comes first in discovery, so
	// that it wins where a short name such as "events" is in two groups. The figures are
	// upstream's.
	order int32
	// versions are served in this order of preference.
	versions []string
	// storage makes the group's storage, which is upstream's.
	storage func(s *storageNeeds) provider
}

// storageNeeds is what providers are made from.
type storageNeeds struct {
	config controlplane.CompletedConfig
	// client speaks for the server itself.
	client *kubernetes.Clientset
	// core is the provider of the core group: see core.go.
	core provider
}

// apiGroups is everything the server serves, but for custom resources
// (apiextensions.k8s.io) and API services (apiregistration.k8s.io), which
// have servers of their own in the chain.
var apiGroups = []apiGroup{
	{"", 18000, []string{"v1"}, func(s *storageNeeds) provider { return s.core }},
	{"apps", 17800, []string{"v1"}, func(s *storageNeeds) provider { return appsrest.StorageProvider{} }},
	{"events.k8s.io", 17750, []string{"v1"}, func(s *storageNeeds) provider {
		return eventsrest.RESTStorageProvider{TTL: s.config.EventTTL}
	}},
	{"authentication.k8s.io", 17700, []string{"v1"}, func(s *storageNeeds) provider {
		a := s.config.Generic.Authentication
		return authenticationrest.RESTStorageProvider{Authenticator: a.Authenticator, APIAudiences: a.APIAudiences}
	}},
	{"authorization.k8s.io", 17600, []string{"v1"}, func(s *storageNeeds) provider {
		return authorizationrest.RESTStorageProvider{Authorizer: s.config.Generic.Authorization.Authorizer, RuleResolver: s.config.Generic.RuleResolver}
	}},
	{"autoscaling", 17500, []string{"v2", "v1"}, func(s *storageNeeds) provider { return autoscalingrest.RESTStorageProvider{} }},
	{"batch", 17400, []string{"v1"}, func(s *storageNeeds) provider { return batchrest.RESTStorageProvider{} }},
	{"certificates.k8s.io", 17300, []string{"v1"}, func(s *storageNeeds) provider {
		return certificatesrest.RESTStorageProvider{Authorizer: s.config.Generic.Authorization.Authorizer}
	}},
	{"networking.k8s.io", 17200, []string{"v1"}, func(s *storageNeeds) provider { return networkingrest.RESTStorageProvider{} }},
	{"policy", 17100, []string{"v1"}, func(s *storageNeeds) provider { return policyrest.RESTStorageProvider{} }},
	{"rbac.authorization.k8s.io", 17000, []string{"v1"}, func(s *storageNeeds) provider {
		return rbacrest.RESTStorageProvider{Authorizer: s.config.Generic.Authorization.Authorizer}
	}},
	{"storage.k8s.io", 16800, []string{"v1"}, func(s *storageNeeds) provider { return storagerest.RESTStorageProvider{} }},
	{"admissionregistration.k8s.io", 16700, []string{"v1"}, func(s *storageNeeds) provider {
		return admissionregistrationrest.RESTStorageProvider{Authorizer: s.config.Generic.Authorization.Authorizer, DiscoveryClient: s.client.Discovery()}
	}},
	{"scheduling.k8s.io", 16600, []string{"v1"}, func(s *storageNeeds) provider { return schedulingrest.RESTStorageProvider{} }},
	{"coordination.k8s.io", 16500, []string{"v1"}, func(s *storageNeeds) provider { return coordinationrest.RESTStorageProvider{} }},
	{"node.k8s.io", 16300, []string{"v1"}, func(s *storageNeeds) provider { return noderest.RESTStorageProvider{} }},
	{"discovery.k8s.io", 16200, []string{"v1"}, func(s *storageNeeds) provider { return discoveryrest.StorageProvider{} }},
	{"resource.k8s.io", 15900, []string{"v1"}, func(s *storageNeeds) provider {
		return resourcerest.RESTStorageProvider{NamespaceClient: s.client.CoreV1().Namespaces(), Authorizer: s.config.Generic.Authorization.Authorizer}
	}},
}

// servedVersions returns the table's group versions as upstream's providers
// want to know them.
func servedVersions() *serverstorage.ResourceConfig {
	served := serverstorage.NewResourceConfig()
	for _, g := range apiGroups {
		for _, v := range g.versions {
			served.EnableVersions(schema.GroupVersion{Group: g.name, Version: v})
		}
	}
	return served
}

// priorities returns the table's order as the aggregator wants to know it.
func priorities() map[schema.GroupVersion]controlplane.APIServicePriority {
	out := map[schema.GroupVersion]controlplane.APIServicePriority{
		{Group: "apiextensions.k8s.io", Version: "v1"}: {Group: 16700, Version: 15},
	}
	for _, g := range apiGroups {
		for i, v := range g.versions {
			out[schema.GroupVersion{Group: g.name, Version: v}] = controlplane.APIServicePriority{Group: g.order, Version: int32(30 - 10*i)}
		}
	}
	return out
}

// storageProviders makes every row's provider.
func storageProviders(needs *storageNeeds) []provider {
	out := make([]provider, 0, len(apiGroups))
	for _, g := range apiGroups {
		out = append(out, g.storage(needs))
	}
	return out
}
