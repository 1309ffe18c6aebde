package service

import (
	"context"
	"sync"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/events"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/controller/servicecidrs"
)

// Run does what a Service registry does besides serving requests, until the context ends: it repairs, and, if there is a
// Client, keeps the finalizers and conditions of ServiceCIDRs right, by upstream's controller. It may start before the API
// is served, and returns when all that has stopped.
func (r *Registry) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	if client := r.cfg.Client; client != nil {
		broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
		defer broadcaster.Shutdown()
		if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
			r.log.Error("repair will not report events", "error", err)
		}
		r.repair.recorder = broadcaster.NewRecorder(legacyscheme.Scheme, "service-registry")

		factory := informers.NewSharedInformerFactory(client, 0)
		defer factory.Shutdown()
		cidrs := servicecidrs.NewController(ctx, factory.Networking().V1().ServiceCIDRs(), factory.Networking().V1().IPAddresses(), client)
		factory.StartWithContext(ctx)
		wg.Go(func() { cidrs.Run(ctx, 1) })
	}
	wg.Go(func() { r.repair.run(ctx) })
	<-ctx.Done()
}
