package apiserver

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
	api "k8s.io/kubernetes/pkg/apis/core"
	controlplane "k8s.io/kubernetes/pkg/controlplane/apiserver"
	"k8s.io/kubernetes/pkg/controlplane/controller/defaultservicecidr"
	"k8s.io/kubernetes/pkg/controlplane/controller/kubernetesservice"
	"k8s.io/kubernetes/pkg/controlplane/reconcilers"
)

const (
	// endpointInterval is how often each server renews its place among the
	// endpoints of default/kubernetes, and endpointTTL how long it keeps it
	// without: when it is gone, the others take it out.
	endpointInterval = 10 * time.Second
	endpointTTL      = 15 * time.Second
)

// keepKubernetesService has the server keep the Service default/kubernetes
// with its EndpointSlice, and the ServiceCIDR object of the configured ranges.
// Several servers on one store share them: each has its endpoint there as long as it lives.
func keepKubernetesService(o Options, config controlplane.CompletedConfig, kube *controlplane.Server, client *kubernetes.Clientset) error {
	reconciler := reconcilers.NewNoneEndpointReconciler()
	if o.AdvertiseAddress.IsValid() {
		storage, err := config.StorageFactory.NewConfig(api.Resource("apiServerIPInfo"), &api.Endpoints{})
		if err != nil {
			return err
		}
		leases, err := reconcilers.NewLeases(storage, "/masterleases/", endpointTTL)
		if err != nil {
			return fmt.Errorf("endpoints of default/kubernetes: %w", err)
		}
		adapter := reconcilers.NewEndpointsAdapter(client.CoreV1(), client.DiscoveryV1())
		reconciler = reconcilers.NewLeaseEndpointReconciler(adapter, leases)
	}
	_, port, err := config.Generic.SecureServing.HostPort()
	if err != nil {
		return err
	}
	service := kubernetesservice.New(kubernetesservice.Config{
		PublicIP:           config.Generic.PublicAddress,
		EndpointReconciler: reconciler,
		EndpointInterval:   endpointInterval,
		ServiceIP:          firstAddress(o.ServiceCIDRs[0]),
		ServicePort:        443,
		PublicServicePort:  port,
	}, client, config.VersionedInformers.Core().V1().Services())
	kube.GenericAPIServer.AddPostStartHookOrDie("bootstrap-controller", func(c genericapiserver.PostStartHookContext) error {
		service.Start(c.Done())
		return nil
	})
	kube.GenericAPIServer.AddPreShutdownHookOrDie("stop-kubernetes-service-controller", func() error {
		service.Stop()
		return nil
	})

	var second net.IPNet
	if len(o.ServiceCIDRs) > 1 {
		second = ipNet(o.ServiceCIDRs[1])
	}
	cidrs := defaultservicecidr.NewController(ipNet(o.ServiceCIDRs[0]), second, client)
	kube.GenericAPIServer.AddPostStartHookOrDie("start-kubernetes-service-cidr-controller", func(c genericapiserver.PostStartHookContext) error {
		cidrs.Start(c) // no Service gets an address before this is done
		return nil
	})
	return nil
}

// firstAddress is the address in p that default/kubernetes has.
func firstAddress(p netip.Prefix) net.IP { return net.IP(p.Masked().Addr().Next().AsSlice()) }
