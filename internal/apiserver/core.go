package apiserver

import (
	"fmt"
	"maps"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/client-go/kubernetes"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"
	endpoints "k8s.io/kubernetes/pkg/registry/core/endpoint/storage"
	limitrange "k8s.io/kubernetes/pkg/registry/core/limitrange/storage"
	node "k8s.io/kubernetes/pkg/registry/core/node/storage"
	volume "k8s.io/kubernetes/pkg/registry/core/persistentvolume/storage"
	claim "k8s.io/kubernetes/pkg/registry/core/persistentvolumeclaim/storage"
	pod "k8s.io/kubernetes/pkg/registry/core/pod/storage"
	podtemplate "k8s.io/kubernetes/pkg/registry/core/podtemplate/storage"
	replication "k8s.io/kubernetes/pkg/registry/core/replicationcontroller/storage"
	corerest "k8s.io/kubernetes/pkg/registry/core/rest"
	serviceaccount "k8s.io/kubernetes/pkg/registry/core/serviceaccount/storage"
)

// coreGroup makes the storage of the core group. Services come from our own
// registry, the rest is upstream's.
type coreGroup struct {
	// base has what every control plane has: namespaces, secrets, configmaps,
	// serviceaccounts, resourcequotas and events.
	base       *corerest.GenericConfig
	client     *kubernetes.Clientset
	authorizer authorizer.Authorizer
	kubelet    kubeletclient.KubeletClientConfig
	// transport dials Pods and Services for the proxy subresources.
	transport http.RoundTripper
	// services makes the storage of services and their subresources.
	services func(restOptions generic.RESTOptionsGetter, pods rest.Getter) (map[string]rest.Storage, error)
}

// GroupName is the name of the core group, which is empty.
func (c *coreGroup) GroupName() string { return corev1.GroupName }

// NewRESTStorage implements upstream's interface of providers.
func (c *coreGroup) NewRESTStorage(enabled serverstorage.APIResourceConfigSource, o generic.RESTOptionsGetter) (genericapiserver.APIGroupInfo, error) {
	info, err := c.base.NewRESTStorage(enabled, o)
	if err != nil {
		return info, err
	}
	storage := info.VersionedResourcesStorageMap["v1"]
	nodes, err := node.NewStorage(o, c.kubelet, c.transport)
	if err != nil {
		return info, fmt.Errorf("nodes: %w", err)
	}
	pods, err := pod.NewStorage(o, nodes.KubeletConnectionInfo, c.transport, c.client.PolicyV1(), c.authorizer)
	if err != nil {
		return info, fmt.Errorf("pods: %w", err)
	}
	accounts, err := c.serviceAccounts(o, storage, pods, nodes)
	if err != nil {
		return info, fmt.Errorf("serviceaccounts: %w", err)
	}
	services, err := c.services(o, pods.Pod)
	if err != nil {
		return info, fmt.Errorf("services: %w", err)
	}
	// The smaller ones. NewREST of each fails only if the store cannot be used at all.
	volumes, volumeStatus, err1 := volume.NewREST(o)
	claims, claimStatus, err2 := claim.NewREST(o)
	templates, err3 := podtemplate.NewREST(o)
	limits, err4 := limitrange.NewREST(o)
	eps, err5 := endpoints.NewREST(o)
	controllers, err6 := replication.NewStorage(o)
	for _, err := range []error{err1, err2, err3, err4, err5, err6} {
		if err != nil {
			return info, err
		}
	}

	maps.Copy(storage, services)
	maps.Copy(storage, map[string]rest.Storage{
		"bindings":                      pods.LegacyBinding,
		"endpoints":                     eps,
		"limitranges":                   limits,
		"nodes":                         nodes.Node,
		"nodes/proxy":                   nodes.Proxy,
		"nodes/status":                  nodes.Status,
		"persistentvolumeclaims":        claims,
		"persistentvolumeclaims/status": claimStatus,
		"persistentvolumes":             volumes,
		"persistentvolumes/status":      volumeStatus,
		"pods":                          pods.Pod,
		"pods/attach":                   pods.Attach,
		"pods/binding":                  pods.Binding,
		"pods/ephemeralcontainers":      pods.EphemeralContainers,
		"pods/eviction":                 pods.Eviction,
		"pods/exec":                     pods.Exec,
		"pods/log":                      pods.Log,
		"pods/portforward":              pods.PortForward,
		"pods/proxy":                    pods.Proxy,
		"pods/resize":                   pods.Resize,
		"pods/status":                   pods.Status,
		"podtemplates":                  templates,
		"replicationcontrollers":        controllers.Controller,
		"replicationcontrollers/scale":  controllers.Scale,
		"replicationcontrollers/status": controllers.Status,
		"serviceaccounts":               accounts,
		"serviceaccounts/token":         accounts.Token,
	})
	info.VersionedResourcesStorageMap["v1"] = storage
	return info, nil
}

// serviceAccounts makes a storage whose tokens can be bound to Pods, Secrets
// and Nodes, in place of the one among base that knows none of them.
func (c *coreGroup) serviceAccounts(o generic.RESTOptionsGetter, base map[string]rest.Storage, pods pod.PodStorage, nodes *node.NodeStorage) (*serviceaccount.REST, error) {
	for _, name := range []string{"serviceaccounts", "serviceaccounts/token"} {
		if s := base[name]; s != nil {
			s.Destroy()
		}
	}
	secrets, ok := base["secrets"].(rest.Getter)
	if !ok {
		return nil, fmt.Errorf("secrets have a storage of type %T, which cannot get", base["secrets"])
	}
	hooks := c.client.AdmissionregistrationV1()
	return serviceaccount.NewREST(o, c.base.ServiceAccountIssuer, c.base.APIAudiences, c.authorizer,
		c.base.ServiceAccountMaxExpiration, pods.Pod.Store, secrets, nodes.Node.Store,
		hooks.ValidatingWebhookConfigurations(), hooks.MutatingWebhookConfigurations(),
		c.base.ExtendExpiration, c.base.MaxExtendedExpiration)
}
