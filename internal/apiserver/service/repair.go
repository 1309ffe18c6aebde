package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/tools/events"
	"k8s.io/kubernetes/pkg/apis/core"

	"fairway.dev/fairway/internal/apiserver/service/claim"
)

// repairer compares what Services hold with what is claimed, and mends the difference:
//
//   - A claim whose Service does not hold the thing has leaked, if that stays so for LeakAge, or if the process that made it is
//     certainly dead: it was killed before it stored the Service or before it released. The claim is released, or given to the
//     Service that does hold the thing.
//   - A thing held without a claim (somebody deleted the IPAddress, or the Services come from elsewhere) is claimed.
//   - A thing held by two Services, or outside every range, is reported: only its owners can say what to do.
//
// Each server repairs for itself. Two at once do no harm: every step names the exact claim that it is about.
type repairer struct {
	rest     *REST
	log      *slog.Logger
	recorder events.EventRecorder // nil: no events
	interval time.Duration
	leakAge  time.Duration
	sole     bool

	suspects map[string]suspect // by kind and id of the claim
	told     map[string]bool    // what was reported in the last pass; it is not repeated while it lasts
}

// retryRepair is the time until the next pass after one that failed.
const retryRepair = 2 * time.Second

// suspect is a claim that has been seen without its Service. since is by this process's monotonic clock: no other clock is trusted.
type suspect struct {
	claim claim.Claim
	since time.Time
}

// kind is what repair needs to know of addresses, and of ports.
type kind struct {
	*claim.Book
	name                                string // in logs and keys
	notAllocated, duplicate, outOfRange string // reasons of events
	action                              string
	describe                            func(id string) string
	inRange                             func(id string) bool
	holders                             map[string][]*core.Service // who holds what
}

func newRepairer(r *REST, cfg Config) *repairer {
	return &repairer{rest: r, log: cfg.Logger, interval: cfg.RepairInterval, leakAge: cfg.LeakAge, sole: cfg.Sole, suspects: map[string]suspect{}, told: map[string]bool{}}
}

// run looks at once, and then every interval, or as soon as a suspect is due.
func (r *repairer) run(ctx context.Context) {
	for {
		err := r.pass(ctx)
		if ctx.Err() != nil {
			return
		}
		wait := r.interval
		for _, s := range r.suspects {
			wait = min(wait, max(r.leakAge-time.Since(s.since), 10*time.Millisecond))
		}
		if err != nil {
			wait = retryRepair // often the storage is still starting
			r.log.Warn("repair of Service addresses and node ports failed, will retry", "error", err, "after", wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// pass looks once. Claims are read before Services: whatever a Service holds was claimed before it was stored.
func (r *repairer) pass(ctx context.Context) error {
	kinds, err := r.kinds(ctx)
	if err != nil {
		return err
	}
	claims := make([][]claim.Claim, len(kinds))
	for i, k := range kinds {
		if claims[i], err = k.List(ctx); err != nil {
			return err
		}
	}
	list, err := r.rest.List(genericapirequest.WithNamespace(ctx, metav1.NamespaceAll), &metainternalversion.ListOptions{})
	if err != nil {
		return fmt.Errorf("reading the Services: %w", err)
	}
	items := list.(*core.ServiceList).Items
	for i := range items {
		h := holdingsOf(&items[i])
		for _, a := range h.addrs {
			kinds[0].holders[a.String()] = append(kinds[0].holders[a.String()], &items[i])
		}
		for _, p := range h.ports {
			kinds[1].holders[claim.PortID(p)] = append(kinds[1].holders[claim.PortID(p)], &items[i])
		}
	}
	var errs []error // one thing that cannot be mended does not stop the others
	suspects, told := map[string]suspect{}, map[string]bool{}
	for i, k := range kinds {
		claimed := make(map[string]claim.Claim, len(claims[i]))
		for _, c := range claims[i] {
			claimed[c.ID] = c
			errs = append(errs, r.checkClaim(ctx, k, c, suspects))
		}
		for id, holders := range k.holders {
			errs = append(errs, r.checkHeld(ctx, k, id, holders, claimed, told))
		}
	}
	r.suspects, r.told = suspects, told
	return errors.Join(errs...)
}

func (r *repairer) kinds(ctx context.Context) ([]*kind, error) {
	prefixes, err := r.rest.alloc.addrs.Known(ctx)
	if err != nil {
		return nil, err
	}
	rng := r.rest.alloc.ports.Range()
	return []*kind{
		{
			Book: r.rest.alloc.addrs.Book, name: "clusterIP", action: "ClusterIPAllocation", holders: map[string][]*core.Service{},
			notAllocated: "ClusterIPNotAllocated", duplicate: "ClusterIPAlreadyAllocated", outOfRange: "ClusterIPOutOfRange",
			describe: func(id string) string {
				return fmt.Sprintf("Cluster IP [%s]: %s", claim.FamilyOf(netip.MustParseAddr(id)), id)
			},
			inRange: func(id string) bool {
				addr := netip.MustParseAddr(id)
				return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
			},
		},
		{
			Book: r.rest.alloc.ports.Book, name: "port", action: "PortAllocation", holders: map[string][]*core.Service{},
			notAllocated: "PortNotAllocated", duplicate: "PortAlreadyAllocated", outOfRange: "PortOutOfRange",
			describe: func(id string) string { return "Port " + id },
			inRange: func(id string) bool {
				p, err := strconv.Atoi(id)
				return err == nil && rng.Contains(p)
			},
		},
	}, nil
}

// checkClaim mends one claim if its Service has not held it for long enough, or if it was tampered with.
func (r *repairer) checkClaim(ctx context.Context, k *kind, c claim.Claim, suspects map[string]suspect) error {
	if c.Foreign {
		return nil
	}
	holders := k.holders[c.ID]
	for _, svc := range holders {
		if !c.Owner.Same(ownerOf(svc)) {
			continue
		}
		if c.Unsound || c.Owner.UID == "" {
			return k.Rewrite(ctx, c, ownerOf(svc))
		}
		return nil
	}
	key := k.name + " " + c.ID
	s, ok := r.suspects[key]
	if !ok || !s.claim.Same(c) {
		s = suspect{claim: c, since: time.Now()}
	}
	dead := r.sole && !c.Mine
	if !dead && time.Since(s.since) < r.leakAge {
		suspects[key] = s
		return nil
	}
	if len(holders) > 0 {
		r.log.Warn("leak found: claimed for a Service that does not hold it, giving it to the one that does", k.name, c.ID, "service", c.Owner.String(), "to", ownerOf(holders[0]).String(), "claimed", c.Created)
		return k.Rewrite(ctx, c, ownerOf(holders[0]))
	}
	r.log.Warn("leak found: claimed for a Service that does not hold it, releasing", k.name, c.ID, "service", c.Owner.String(), "claimed", c.Created)
	if k.name == "clusterIP" {
		regarding := &corev1.ObjectReference{APIVersion: "networking.k8s.io/v1", Kind: "IPAddress", Name: c.ID}
		r.event(regarding, "IPAddressNotAllocated", "IPAddressAllocation", fmt.Sprintf("IPAddress: %s for Service %s appears to have leaked: cleaning up", c.ID, c.Owner))
	}
	err := k.Remove(ctx, c)
	if err != nil {
		suspects[key] = s // it has waited long enough
	}
	return err
}

// checkHeld reports what is wrong with a thing that Services hold, and claims it for them if nobody has.
func (r *repairer) checkHeld(ctx context.Context, k *kind, id string, holders []*core.Service, claimed map[string]claim.Claim, told map[string]bool) error {
	for _, svc := range holders {
		tell := func(reason, note string) {
			key := string(svc.UID) + reason + id
			told[key] = true
			if !r.told[key] {
				r.log.Warn(note, "service", ownerOf(svc).String())
				r.event(&corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: svc.Namespace, Name: svc.Name, UID: svc.UID}, reason, k.action, note)
			}
		}
		if !k.inRange(id) {
			tell(k.outOfRange, k.describe(id)+" is not within any configured range; please recreate service")
		}
		c, ok := claimed[id]
		if ok && c.Owner.Same(ownerOf(svc)) {
			continue
		}
		if len(holders) > 1 {
			tell(k.duplicate, k.describe(id)+" was assigned to multiple services; please recreate service")
		}
		if ok {
			continue // somebody else's, or not sound: checkClaim is about that
		}
		missing, err := r.missing(ctx, k, id, svc)
		if err != nil {
			return err
		}
		if missing {
			tell(k.notAllocated, k.describe(id)+" is not allocated; repairing")
			if err := k.Claim(ctx, id, ownerOf(svc)); err != nil && !errors.Is(err, claim.ErrTaken) {
				return err
			}
		}
	}
	return nil
}

// missing makes sure that svc holds id and that there is no claim on it, by looking again: first at the claim, then at the
// Service. The lists may have been read while it was being created or deleted.
func (r *repairer) missing(ctx context.Context, k *kind, id string, svc *core.Service) (bool, error) {
	if _, found, err := k.Get(ctx, id); found || err != nil {
		return false, err
	}
	obj, err := r.rest.Get(genericapirequest.WithNamespace(ctx, svc.Namespace), svc.Name, &metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	now := obj.(*core.Service)
	h := holdingsOf(now)
	held := slices.ContainsFunc(h.addrs, func(a netip.Addr) bool { return a.String() == id }) ||
		slices.ContainsFunc(h.ports, func(p int32) bool { return claim.PortID(p) == id })
	return held && now.UID == svc.UID, nil
}

func (r *repairer) event(regarding runtime.Object, reason, action, note string) {
	if r.recorder != nil {
		r.recorder.Eventf(regarding, nil, corev1.EventTypeWarning, reason, action, "%s", note)
	}
}
