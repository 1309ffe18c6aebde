package controller

import (
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/metadata/metadatainformer"
)

// cachedWhole are the resources whose objects some controller of the table
// reads, and which are therefore in the shared caches as they are. Of all
// others, only the metadata is cached.
var cachedWhole = map[schema.GroupResource]bool{
	{Group: "", Resource: "configmaps"}:                            true,
	{Group: "", Resource: "endpoints"}:                             true,
	{Group: "", Resource: "namespaces"}:                            true,
	{Group: "", Resource: "nodes"}:                                 true,
	{Group: "", Resource: "persistentvolumeclaims"}:                true,
	{Group: "", Resource: "persistentvolumes"}:                     true,
	{Group: "", Resource: "pods"}:                                  true,
	{Group: "", Resource: "replicationcontrollers"}:                true,
	{Group: "", Resource: "resourcequotas"}:                        true,
	{Group: "", Resource: "serviceaccounts"}:                       true,
	{Group: "", Resource: "services"}:                              true,
	{Group: "apps", Resource: "controllerrevisions"}:               true,
	{Group: "apps", Resource: "daemonsets"}:                        true,
	{Group: "apps", Resource: "deployments"}:                       true,
	{Group: "apps", Resource: "replicasets"}:                       true,
	{Group: "apps", Resource: "statefulsets"}:                      true,
	{Group: "batch", Resource: "cronjobs"}:                         true,
	{Group: "batch", Resource: "jobs"}:                             true,
	{Group: "coordination.k8s.io", Resource: "leases"}:             true,
	{Group: "discovery.k8s.io", Resource: "endpointslices"}:        true,
	{Group: "policy", Resource: "poddisruptionbudgets"}:            true,
	{Group: "rbac.authorization.k8s.io", Resource: "clusterroles"}: true,
}

// mixedInformers finds the cache for any resource of the API, custom ones
// included: the shared one where there is one, else one of metadata.
type mixedInformers struct {
	typed    informers.SharedInformerFactory
	metadata metadatainformer.SharedInformerFactory
}

// ForResource returns the resource's informer, which Start starts.
func (m *mixedInformers) ForResource(resource schema.GroupVersionResource) (informers.GenericInformer, error) {
	if cachedWhole[resource.GroupResource()] {
		if informer, err := m.typed.ForResource(resource); err == nil {
			return informer, nil
		}
	}
	return m.metadata.ForResource(resource), nil
}

// Start starts what has been asked for since the last Start.
func (m *mixedInformers) Start(stop <-chan struct{}) {
	m.typed.Start(stop)
	m.metadata.Start(stop)
}

// trim keeps managedFields, which no controller reads and which are often the
// larger part of an object, out of the caches.
func trim(obj any) (any, error) {
	if accessor, err := meta.Accessor(obj); err == nil {
		accessor.SetManagedFields(nil)
	}
	return obj, nil
}
