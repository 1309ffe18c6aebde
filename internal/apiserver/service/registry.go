package service

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/client-go/kubernetes"
	svcreg "k8s.io/kubernetes/pkg/registry/core/service"

	"fairway.dev/fairway/internal/apiserver/service/claim"
)

// Config is what the registry is made from.
type Config struct {
	// RESTOptions leads to the etcd storage of services, ipaddresses and servicecidrs.
	RESTOptions generic.RESTOptionsGetter

	// ServiceCIDRs are the prefixes of the default ServiceCIDR: one, or one of each family. Only their families matter here: they
	// are the ones that Services can have, the first by default. Addresses come from whatever ServiceCIDR objects are ready.
	ServiceCIDRs []netip.Prefix

	// NodePorts is the range of node ports and health check node ports.
	NodePorts utilnet.PortRange

	// Client reaches the API that this registry is part of, with all rights. Run uses it for events and for ServiceCIDR objects.
	// Nil: there are neither events nor controllers of ServiceCIDRs.
	Client kubernetes.Interface

	// EndpointSlices, Pods and ProxyTransport serve services/proxy. Without EndpointSlices no Service has an endpoint.
	EndpointSlices proxy.EndpointSliceGetter
	Pods           rest.Getter
	ProxyTransport http.RoundTripper

	// RepairInterval is the time between two looks for leaks (default 1 minute).
	RepairInterval time.Duration

	// LeakAge is how long a claim must be seen without its Service before it is released (default 1 minute). A write of a Service
	// gives up after half of it.
	LeakAge time.Duration

	// Sole says that no other process has this etcd. Then a claim that another process made and no Service has is a leak for sure,
	// and released when it is first seen: a server that was killed finds all free again when it is back.
	Sole bool

	Logger *slog.Logger // default: slog.Default()
}

// Registry is the Service registry of one API server. Any number of them may share one etcd.
type Registry struct {
	cfg    Config
	log    *slog.Logger
	rest   *REST
	status *StatusREST
	repair *repairer
}

// New opens the registry's storage. It reads and writes nothing yet.
func New(cfg Config) (*Registry, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.RepairInterval <= 0 {
		cfg.RepairInterval = time.Minute
	}
	if cfg.LeakAge <= 0 {
		cfg.LeakAge = time.Minute
	}
	fams, err := familiesOf(cfg.ServiceCIDRs)
	if err != nil {
		return nil, err
	}
	addrs, err := claim.NewAddresses(cfg.RESTOptions)
	if err != nil {
		return nil, err
	}
	ports, err := claim.NewPorts(cfg.RESTOptions, cfg.NodePorts)
	if err != nil {
		addrs.Close()
		return nil, err
	}
	alloc := &allocator{addrs: addrs, ports: ports, log: cfg.Logger}
	r, status, err := newREST(cfg.RESTOptions, fams, alloc, cfg.LeakAge/2)
	if err != nil {
		addrs.Close()
		ports.Close()
		return nil, fmt.Errorf("storage of services: %w", err)
	}
	r.location = &locator{slices: cfg.EndpointSlices, pods: cfg.Pods, transport: cfg.ProxyTransport}
	return &Registry{cfg: cfg, log: cfg.Logger, rest: r, status: status, repair: newRepairer(r, cfg)}, nil
}

// familiesOf returns the families of the default ServiceCIDR's prefixes, in order.
func familiesOf(cidrs []netip.Prefix) (families, error) {
	var f families
	for _, p := range cidrs {
		if !p.IsValid() {
			return nil, errors.New("a service CIDR is not valid: give prefixes such as 10.96.0.0/16")
		}
		f = append(f, claim.FamilyOf(p.Addr()))
	}
	switch {
	case len(f) == 0:
		return nil, errors.New("no service CIDR: give one prefix, or one of each family, such as 10.96.0.0/16 and fd00:10:96::/112")
	case len(f) > 2, len(f) == 2 && f[0] == f[1]:
		return nil, fmt.Errorf("service CIDRs %v: give one prefix, or one of each family; more can be added as ServiceCIDR objects", cidrs)
	}
	return f, nil
}

// Storage returns what to serve, by the names of the resources below /api/v1. The API server destroys it.
func (r *Registry) Storage() map[string]rest.Storage {
	return map[string]rest.Storage{
		"services":        r.rest,
		"services/status": r.status,
		"services/proxy":  &svcreg.ProxyREST{Redirector: r.rest, ProxyTransport: r.cfg.ProxyTransport},
	}
}
