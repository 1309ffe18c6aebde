package service

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/events"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/controller/servicecidrs"
	"k8s.io/kubernetes/pkg/controlplane/controller/defaultservicecidr"

	"fairway.dev/fairway/internal/apiserver/service/claim"
)

// Run does what a Service registry does besides serving requests, until the context ends: it repairs, and, if there is a Client,
// keeps the default ServiceCIDR "kubernetes" in being, and the finalizers and conditions of all ServiceCIDRs right (by
// upstream's controllers). The API must be served by then or soon. It returns when all that has stopped.
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

		wg.Go(func() {
			defaultservicecidr.NewController(ipNet(r.cfg.ServiceCIDRs, 0), ipNet(r.cfg.ServiceCIDRs, 1), client).Start(ctx)
		})
		factory := informers.NewSharedInformerFactory(client, 0)
		controller := servicecidrs.NewController(ctx, factory.Networking().V1().ServiceCIDRs(), factory.Networking().V1().IPAddresses(), client)
		factory.StartWithContext(ctx)
		wg.Go(func() { controller.Run(ctx, 1) })
		defer factory.Shutdown()
	}
	wg.Go(func() { r.repair.run(ctx) })
	<-ctx.Done()
}

// ipNet returns the i-th prefix in the form that upstream's controller takes; the zero value if there is none.
func ipNet(prefixes []netip.Prefix, i int) net.IPNet {
	if i >= len(prefixes) {
		return net.IPNet{}
	}
	p := prefixes[i].Masked()
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func isTaken(err error) bool { return errors.Is(err, claim.ErrTaken) }
