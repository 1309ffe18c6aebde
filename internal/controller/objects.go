package controller

import (
	"context"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/quota/v1/generic"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	"k8s.io/kubernetes/pkg/controller/namespace"
	"k8s.io/kubernetes/pkg/controller/resourcequota"
	"k8s.io/kubernetes/pkg/quota/v1/install"
)

// The three controllers that care for objects of every kind, custom ones
// included, and look for new kinds now and then.

// newKinds is how often they look.
const newKinds = 30 * time.Second

func buildGarbageCollector(ctx context.Context, e *env) (func(context.Context), error) {
	resources, err := discovery.NewDiscoveryClientForConfig(e.config)
	if err != nil {
		return nil, err
	}
	client, err := metadata.NewForConfig(e.config)
	if err != nil {
		return nil, err
	}
	graph := garbagecollector.NewDependencyGraphBuilder(ctx, e.metadata, e.mapper, garbagecollector.DefaultIgnoredResources(), e.everything, e.started)
	c, err := garbagecollector.NewComposedGarbageCollector(ctx, e.client, client, e.mapper, graph)
	if err != nil {
		return nil, err
	}
	return together(
		func(ctx context.Context) { c.Run(ctx, 20, newKinds) },
		func(ctx context.Context) { c.Sync(ctx, resources, newKinds) },
	), nil
}

func buildNamespace(ctx context.Context, e *env) (func(context.Context), error) {
	client, err := metadata.NewForConfig(e.config)
	if err != nil {
		return nil, err
	}
	return workers(10, namespace.NewNamespaceController(ctx, e.client, client, e.client.Discovery().ServerPreferredNamespacedResources,
		e.informers.Core().V1().Namespaces(), 5*time.Minute, v1.FinalizerKubernetes), nil)
}

func buildQuota(ctx context.Context, e *env) (func(context.Context), error) {
	resources, err := discovery.NewDiscoveryClientForConfig(e.config)
	if err != nil {
		return nil, err
	}
	config, err := install.NewQuotaConfigurationForControllers(generic.ListerFuncForResourceFunc(e.everything.ForResource), e.informers)
	if err != nil {
		return nil, err
	}
	resync := func() time.Duration { return 5 * time.Minute }
	c, err := resourcequota.NewController(ctx, &resourcequota.ControllerOptions{
		QuotaClient:               e.client.CoreV1(),
		ResourceQuotaInformer:     e.informers.Core().V1().ResourceQuotas(),
		ResyncPeriod:              resync,
		InformerFactory:           e.everything,
		ReplenishmentResyncPeriod: resync,
		DiscoveryFunc:             resources.ServerPreferredNamespacedResources,
		IgnoredResourcesFunc:      config.IgnoredResources,
		InformersStarted:          e.started,
		Registry:                  generic.NewRegistry(config.Evaluators()),
		UpdateFilter:              install.DefaultUpdateFilter(),
	})
	if err != nil {
		return nil, err
	}
	return together(
		func(ctx context.Context) { c.Run(ctx, 2) },
		func(ctx context.Context) { c.Sync(ctx, resources.ServerPreferredNamespacedResources, newKinds) },
	), nil
}

// together runs functions side by side and returns when all have.
func together(parts ...func(context.Context)) func(context.Context) {
	return func(ctx context.Context) {
		var wg sync.WaitGroup
		for _, part := range parts {
			wg.Go(func() { part(ctx) })
		}
		wg.Wait()
	}
}
