package lb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/tools/cache"

	"fairway.dev/fairway/api/v1alpha1"
	"fairway.dev/fairway/internal/lb/ipam"
)

// errNotHeld is that the Lease has not been renewed for too long.
var errNotHeld = errors.New("the Lease has not been renewed in time")

func (c *controller) next(ctx context.Context) bool {
	key, shutdown := c.queue.Get()
	if shutdown {
		return false
	}
	defer c.queue.Done(key)
	if ctx.Err() != nil {
		return true // drain
	}
	since, waited := c.waits.stop(key)
	wrote, err := c.reconcile(ctx, key)
	if wrote && waited {
		c.Monitor.written.Observe(time.Since(since).Seconds())
	}
	if err != nil && waited {
		c.waits.resume(key, since)
	}
	switch {
	case err == nil:
		c.queue.Forget(key)
	case apierrors.IsConflict(err), apierrors.IsNotFound(err), errors.Is(err, context.Canceled), errors.Is(err, errNotHeld):
		// It has changed meanwhile, and its event is on the way; or this term is over.
		c.queue.AddRateLimited(key)
	default:
		c.Monitor.errs.Inc()
		c.logger.Warn("write load balancer address, will try again", "service", key, "err", err)
		c.queue.AddRateLimited(key)
	}
	return true
}

// reconcile makes one Service's status say what it has, and tells whether it
// had to write for that.
func (c *controller) reconcile(ctx context.Context, key string) (wrote bool, err error) {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return false, nil
	}
	svc, err := c.lister.Services(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		c.drop(key)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !c.Monitor.holds() {
		return false, errNotHeld // whoever leads now has other things in its books
	}
	if !Handles(svc, c.Classless, c.Classes...) || svc.DeletionTimestamp != nil {
		if err := unassign(ctx, c.client, svc); err != nil {
			return false, fmt.Errorf("give addresses back: %w", err)
		}
		c.drop(key)
		return false, nil
	}
	req, invalid := requestOf(svc, c.namespaceLabels(namespace))
	c.mu.Lock()
	if older(svc.ResourceVersion, c.written[key]) {
		c.mu.Unlock()
		return false, nil // what was written last is on its way here
	}
	var o ipam.Outcome
	if invalid != nil {
		// It keeps what it has.
		c.invalid[key] = true
		o = c.alloc.Get(key)
		o.Pending = &ipam.Pending{Reason: reasonInvalid, Message: invalid.Error()}
	} else {
		delete(c.invalid, key)
		if foreign(svc) {
			c.alloc.Take(claimOf(svc, req.NamespaceLabels))
		}
		o = c.alloc.Set(req)
		if used := asked(svc); o.Pending != nil && used != "" {
			p := *o.Pending
			p.Message += " (asked for by " + used + ")"
			o.Pending = &p
		}
	}
	c.changed()
	c.mu.Unlock()

	version, err := assign(ctx, c.client, svc, o)
	if err != nil {
		return false, err
	}
	c.mu.Lock()
	c.alloc.Confirm(key)
	c.changed()
	if version != "" {
		c.written[key] = version
	} else {
		delete(c.written, key)
	}
	c.mu.Unlock()
	if version != "" {
		c.Monitor.events.Inc()
		c.tell(svc, o)
	}
	return version != "", nil
}

func (c *controller) drop(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alloc.Remove(key)
	delete(c.written, key)
	delete(c.invalid, key)
	c.changed()
}

// tell has events say what is new for a Service.
func (c *controller) tell(svc *corev1.Service, o ipam.Outcome) {
	now := condition(svc, o)
	if in := ingressOf(o); len(in) > 0 && !slices.EqualFunc(in, svc.Status.LoadBalancer.Ingress,
		func(a, b corev1.LoadBalancerIngress) bool { return a.IP == b.IP }) {
		var all []string
		for _, a := range o.Addresses {
			all = append(all, fmt.Sprintf("%s from pool %q", a.Addr, a.Origin))
		}
		c.events.Event(svc, corev1.EventTypeNormal, "AddressAllocated", "Allocated "+strings.Join(all, " and "))
		c.logger.Debug("load balancer address allocated", "service", svc.Namespace+"/"+svc.Name, "addresses", strings.Join(all, ", "))
	}
	old := meta.FindStatusCondition(svc.Status.Conditions, v1alpha1.ConditionAddress)
	if now.Reason == reasonAllocated || old != nil && old.Reason == now.Reason && old.Message == now.Message {
		return
	}
	kind := corev1.EventTypeWarning
	if now.Status == "True" {
		kind = corev1.EventTypeNormal
	}
	c.events.Event(svc, kind, now.Reason, now.Message)
	c.logger.Debug("load balancer address", "service", svc.Namespace+"/"+svc.Name, "reason", now.Reason, "message", now.Message)
}

// older says whether a resource version is from before another one; they are
// numbers that grow, per resource.
func older(a, b string) bool {
	x, err := strconv.ParseUint(a, 10, 64)
	y, err2 := strconv.ParseUint(b, 10, 64)
	return err == nil && err2 == nil && x < y
}
