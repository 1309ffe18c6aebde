package endpoints

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	utilnet "k8s.io/utils/net"
)

// maxMirrored is the most addresses of one subset that are mirrored
// (upstream's mirroring-max-endpoints-per-subset).
const maxMirrored = 1000

// syncMirror makes the mirrored EndpointSlices of one Service what its
// hand-written Endpoints say: those of a Service without a selector, not
// labelled endpointslice.kubernetes.io/skip-mirror, and no leader election's
// lock. Every other Service has no mirrored slices.
func (c *Controller) syncMirror(ctx context.Context, key name) error {
	endpoints, err := c.mirrored(key)
	if err != nil {
		return err
	}
	if endpoints == nil {
		c.mirrorsTracker.DeleteService(key.Namespace, key.Name)
		c.mirrorsFresh.arrived(key)
		return c.writeMirrors(ctx, key, mirrorPlan{delete: c.slicesOf(key, mirrorsManagedBy)})
	}
	service := &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
	existing, ok := c.current(service, mirrorsManagedBy, c.mirrorsTracker, c.mirrorsFresh, c.mirrorQueue)
	if !ok {
		return nil
	}
	desired, invalid, skipped := mirrorsOf(endpoints)
	if invalid > 0 {
		c.recorder.Eventf(endpoints, v1.EventTypeWarning, "InvalidIPAddress",
			"Skipped %d invalid IP addresses when mirroring to EndpointSlices", invalid)
	}
	if skipped > 0 {
		c.recorder.Eventf(endpoints, v1.EventTypeWarning, "TooManyAddressesToMirror",
			"A max of %d addresses can be mirrored to EndpointSlices per Endpoints subset. %d addresses were skipped", maxMirrored, skipped)
	}
	for _, s := range existing {
		if !c.mirrorsTracker.Has(s) {
			c.mirrorsTracker.Update(s)
		}
	}
	plan := planMirrors(existing, desired)
	if endpoints.DeletionTimestamp != nil {
		plan.create = nil
	}
	return c.writeMirrors(ctx, key, plan)
}

// mirrored returns the Endpoints to mirror for a Service, nil for none.
func (c *Controller) mirrored(key name) (*v1.Endpoints, error) {
	endpoints, err := c.endpoints.Endpoints(key.Namespace).Get(key.Name)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil || !mayMirror(endpoints) {
		return nil, err
	}
	service, err := c.services.Services(key.Namespace).Get(key.Name)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil || len(service.Spec.Selector) > 0 {
		return nil, err
	}
	return endpoints, nil
}

// mayMirror says whether Endpoints are mirrored if their Service has no
// selector.
func mayMirror(endpoints *v1.Endpoints) bool {
	_, lock := endpoints.Annotations[resourcelock.LeaderElectionRecordAnnotationKey]
	return !lock && endpoints.Labels[discovery.LabelSkipMirror] != "true"
}

// mirrorsOf computes the slices that mirror endpoints: one for each packed
// subset and address family that has addresses, without a name. invalid counts
// addresses that are none, skipped those beyond maxMirrored.
func mirrorsOf(endpoints *v1.Endpoints) (desired []*discovery.EndpointSlice, invalid, skipped int) {
	for _, subset := range pack(endpoints.Subsets) {
		byFamily := map[discovery.AddressType]*discovery.EndpointSlice{}
		seen := map[string]bool{}
		n := 0
		add := func(a *v1.EndpointAddress, ready bool) {
			ip := utilnet.ParseIPSloppy(a.IP)
			if ip == nil {
				invalid++
				return
			}
			canonical := ip.String()
			if seen[canonical] {
				return
			}
			if n == maxMirrored {
				skipped++
				return
			}
			n++
			seen[canonical] = true
			family := discovery.AddressTypeIPv4
			if utilnet.IsIPv6(ip) {
				family = discovery.AddressTypeIPv6
			}
			s := byFamily[family]
			if s == nil {
				s = newMirror(endpoints, family, subset.Ports)
				byFamily[family] = s
				desired = append(desired, s)
			}
			ep := discovery.Endpoint{
				Addresses:  []string{canonical},
				Conditions: discovery.EndpointConditions{Ready: &ready},
				TargetRef:  a.TargetRef,
				NodeName:   a.NodeName,
			}
			if a.Hostname != "" {
				ep.Hostname = &a.Hostname
			}
			s.Endpoints = append(s.Endpoints, ep)
		}
		for i := range subset.Addresses {
			add(&subset.Addresses[i], true)
		}
		for i := range subset.NotReadyAddresses {
			add(&subset.NotReadyAddresses[i], false)
		}
	}
	return desired, invalid, skipped
}

// newMirror is an empty slice with the labels and annotations of endpoints.
func newMirror(endpoints *v1.Endpoints, family discovery.AddressType, ports []v1.EndpointPort) *discovery.EndpointSlice {
	owner := metav1.NewControllerRef(endpoints, v1.SchemeGroupVersion.WithKind("Endpoints"))
	s := &discovery.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       endpoints.Namespace,
			GenerateName:    generateName(endpoints.Name),
			Labels:          maps.Clone(endpoints.Labels),
			Annotations:     maps.Clone(endpoints.Annotations),
			OwnerReferences: []metav1.OwnerReference{*owner},
		},
		AddressType: family,
	}
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	s.Labels[discovery.LabelServiceName] = endpoints.Name
	s.Labels[discovery.LabelManagedBy] = mirrorsManagedBy
	delete(s.Annotations, v1.EndpointsLastChangeTriggerTime)
	delete(s.Annotations, v1.LastAppliedConfigAnnotation)
	for i := range ports {
		p := &ports[i]
		s.Ports = append(s.Ports, discovery.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &p.Protocol, AppProtocol: p.AppProtocol})
	}
	return s
}

// generateName is the prefix of a slice's name: the Service's name and a dash,
// where that is no longer than a name may be.
func generateName(service string) string {
	const longest = 253 - 5 // what generated names leave for the prefix
	if len(service)+1 > longest {
		return service[:longest]
	}
	return service + "-"
}

// mirrorPlan is what to write.
type mirrorPlan struct {
	create, update, delete []*discovery.EndpointSlice
}

// planMirrors pairs the desired slices with existing ones: first with one of
// the same family and ports, then with any of the same family that is left,
// for a slice is better changed than deleted and made anew. desired slices
// that take over an existing one get its name.
func planMirrors(existing, desired []*discovery.EndpointSlice) mirrorPlan {
	var plan mirrorPlan
	existing = slices.Clone(existing)
	slices.SortFunc(existing, func(a, b *discovery.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
	take := func(fits func(*discovery.EndpointSlice) bool) *discovery.EndpointSlice {
		for i, s := range existing {
			if fits(s) {
				existing = slices.Delete(existing, i, i+1)
				return s
			}
		}
		return nil
	}
	replace := func(old, s *discovery.EndpointSlice) {
		if !sameMirror(old, s) {
			s.Name, s.GenerateName = old.Name, ""
			plan.update = append(plan.update, s)
		}
	}
	var rest []*discovery.EndpointSlice
	for _, s := range desired {
		old := take(func(e *discovery.EndpointSlice) bool {
			return e.AddressType == s.AddressType && apiequality.Semantic.DeepEqual(e.Ports, s.Ports)
		})
		if old == nil {
			rest = append(rest, s)
			continue
		}
		replace(old, s)
	}
	for _, s := range rest {
		old := take(func(e *discovery.EndpointSlice) bool { return e.AddressType == s.AddressType })
		if old == nil {
			plan.create = append(plan.create, s)
			continue
		}
		replace(old, s)
	}
	plan.delete = existing
	return plan
}

// sameMirror says whether an existing slice is what is wanted.
func sameMirror(old, wanted *discovery.EndpointSlice) bool {
	return sameLabels(old.Labels, wanted.Labels) && sameLabels(old.Annotations, wanted.Annotations) &&
		apiequality.Semantic.DeepEqual(old.OwnerReferences, wanted.OwnerReferences) &&
		apiequality.Semantic.DeepEqual(old.Ports, wanted.Ports) &&
		apiequality.Semantic.DeepEqual(byAddress(old.Endpoints), byAddress(wanted.Endpoints))
}

func byAddress(list []discovery.Endpoint) []discovery.Endpoint {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b discovery.Endpoint) int {
		return cmp.Compare(strings.Join(a.Addresses, ","), strings.Join(b.Addresses, ","))
	})
	return list
}

func (c *Controller) writeMirrors(ctx context.Context, key name, plan mirrorPlan) error {
	client := c.client.DiscoveryV1().EndpointSlices(key.Namespace)
	var errs []error
	for _, s := range plan.create {
		made, err := client.Create(ctx, s, metav1.CreateOptions{})
		if apierrors.HasStatusCause(err, v1.NamespaceTerminatingCause) {
			return nil
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("creating an EndpointSlice that mirrors Endpoints %s: %w", key, err))
			continue
		}
		c.mirrorsTracker.Update(made)
	}
	for _, s := range plan.update {
		made, err := client.Update(ctx, s, metav1.UpdateOptions{})
		if err != nil {
			errs = append(errs, fmt.Errorf("updating EndpointSlice %s/%s, which mirrors Endpoints %s: %w", key.Namespace, s.Name, key, err))
			continue
		}
		c.mirrorsTracker.Update(made)
	}
	for _, s := range plan.delete {
		err := client.Delete(ctx, s.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(s.UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("deleting EndpointSlice %s/%s, which mirrored Endpoints %s: %w", key.Namespace, s.Name, key, err))
			continue
		}
		c.mirrorsTracker.ExpectDeletion(s)
	}
	return errors.Join(errs...)
}
