package service

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/kubernetes/pkg/apis/core"
)

// locator finds the Pod that services/proxy sends a request to.
type locator struct {
	slices    proxy.EndpointSliceGetter // nil: nothing is ever found
	pods      rest.Getter
	transport http.RoundTripper
}

// ResourceLocation returns the URL of a ready endpoint of the Service that id names, as "name", "name:port" or
// "scheme:name:port" with the port's name or number, and the transport to reach it by. Only addresses of Pods are
// ever returned: whoever may write EndpointSlices must not make the API server send requests anywhere else.
func (r *REST) ResourceLocation(ctx context.Context, id string) (*url.URL, http.RoundTripper, error) {
	scheme, name, port, ok := utilnet.SplitSchemeNamePort(id)
	if !ok {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("invalid service request %q: want NAME, NAME:PORT or SCHEME:NAME:PORT", id))
	}
	namespace := genericapirequest.NamespaceValue(ctx)
	if namespace == "" {
		return nil, nil, apierrors.NewBadRequest("missing required namespace")
	}
	if n, err := strconv.ParseInt(port, 10, 64); err == nil { // endpoint slices know only the names of Service ports
		obj, err := r.Get(ctx, name, &metav1.GetOptions{})
		if err != nil {
			return nil, nil, err
		}
		ports := obj.(*core.Service).Spec.Ports
		i := slices.IndexFunc(ports, func(p core.ServicePort) bool { return int64(p.Port) == n })
		if i < 0 {
			return nil, nil, apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %d found for service %q", n, name))
		}
		port = ports[i].Name
	}
	var found []*discovery.EndpointSlice
	if r.location.slices != nil {
		var err error
		if found, err = r.location.slices.GetEndpointSlices(namespace, name); err != nil {
			return nil, nil, apierrors.NewInternalError(err)
		}
	}
	if len(found) == 0 {
		return nil, nil, apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", name))
	}
	host, err := proxy.RandomEndpoint(name, found, port, corev1.IPFamily(r.families[0]), func(ep *discovery.Endpoint) bool {
		err := r.location.isPod(ctx, namespace, ep)
		if err != nil {
			r.alloc.log.Warn("endpoint not proxied to", "service", namespace+"/"+name, "addresses", ep.Addresses, "error", err)
		}
		return err == nil
	})
	if err != nil {
		return nil, nil, err
	}
	return &url.URL{Scheme: scheme, Host: host}, r.location.transport, nil
}

// isPod returns an error unless the endpoint's first address is one of the Pod that it refers to.
func (l *locator) isPod(ctx context.Context, namespace string, ep *discovery.Endpoint) error {
	if ep.TargetRef == nil {
		return errors.New("it refers to no Pod")
	}
	if ep.TargetRef.Namespace != namespace {
		return fmt.Errorf("it refers to a Pod of another namespace, %s", ep.TargetRef.Namespace)
	}
	obj, err := l.pods.Get(ctx, ep.TargetRef.Name, &metav1.GetOptions{})
	if err != nil {
		return err
	}
	pod, ok := obj.(*core.Pod)
	if !ok {
		return fmt.Errorf("it refers to a %T", obj)
	}
	if len(ep.Addresses) == 0 || !slices.ContainsFunc(pod.Status.PodIPs, func(ip core.PodIP) bool { return ip.IP == ep.Addresses[0] }) {
		return fmt.Errorf("its Pod %s has not that address", pod.Name)
	}
	return nil
}
