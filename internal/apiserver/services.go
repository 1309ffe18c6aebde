package apiserver

import (
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
	controlplane "k8s.io/kubernetes/pkg/controlplane/apiserver"

	"fairway.dev/fairway/internal/apiserver/service"
)

// servicesFunc makes the storage of Services; see coreGroup.
type servicesFunc = func(generic.RESTOptionsGetter, rest.Getter) (map[string]rest.Storage, error)

// newServices returns what makes the storage of Services from our own
// registry, and has the server run what the registry does besides: mending
// leaks, and keeping ServiceCIDRs.
func newServices(o Options, config controlplane.CompletedConfig, kube *controlplane.Server, client kubernetes.Interface) servicesFunc {
	return func(restOptions generic.RESTOptionsGetter, pods rest.Getter) (map[string]rest.Storage, error) {
		registry, err := service.New(service.Config{
			RESTOptions:    restOptions,
			ServiceCIDRs:   o.ServiceCIDRs,
			NodePorts:      utilnet.PortRange{Base: int(o.NodePorts.First), Size: o.NodePorts.size()},
			Client:         client,
			EndpointSlices: config.EndpointSliceGetter,
			Pods:           pods,
			ProxyTransport: config.ProxyTransport,
			Sole:           o.embedded,
			Logger:         o.Logger,
		})
		if err != nil {
			return nil, err
		}
		kube.GenericAPIServer.AddPostStartHookOrDie("fairway/services", func(hook genericapiserver.PostStartHookContext) error {
			go registry.Run(hook)
			return nil
		})
		return registry.Storage(), nil
	}
}
