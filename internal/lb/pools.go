package lb

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"fairway.dev/fairway/api/v1alpha1"
	"fairway.dev/fairway/internal/lb/ipam"
)

// poolOf reads a pool. A pool that is not valid is closed, and the error says
// what is wrong with it; what it gave out before stays given out.
func poolOf(p *v1alpha1.IPPool, nodes []*corev1.Node) (ipam.Pool, error) {
	out := ipam.Pool{
		Name:       p.Name,
		Priority:   p.Spec.Priority,
		AutoAssign: p.Spec.AutoAssign == nil || *p.Spec.AutoAssign,
		AvoidBuggy: p.Spec.AvoidBuggyIPs,
		Closed:     p.DeletionTimestamp != nil,
	}
	var errs []error
	selector := func(field string, s *metav1.LabelSelector) labels.Selector {
		if s == nil {
			return nil
		}
		sel, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("spec.%s: %w", field, err))
		}
		return sel
	}
	out.Namespaces = selector("namespaceSelector", p.Spec.NamespaceSelector)
	out.Services = selector("serviceSelector", p.Spec.ServiceSelector)
	nodeSelector := selector("announce.nodeSelector", p.Spec.Announce.NodeSelector)
	for i, f := range p.Spec.Announce.From {
		selector(fmt.Sprintf("announce.from[%d].nodeSelector", i), f.NodeSelector)
	}
	if p.Spec.Provider == v1alpha1.ProviderNodeAddress {
		out.Common = true
		if len(errs) == 0 {
			out.Ranges = nodeAddresses(nodes, nodeSelector)
		}
	} else {
		for i, s := range p.Spec.Addresses {
			r, err := ipam.ParseRange(s)
			if err != nil {
				errs = append(errs, fmt.Errorf("spec.addresses[%d]: %w", i, err))
				continue
			}
			out.Ranges = append(out.Ranges, r)
		}
	}
	if len(errs) > 0 {
		out.Closed = true
	}
	return out, errors.Join(errs...)
}

// nodeAddresses are the internal addresses of the ready nodes that a selector
// selects; of all it selects where none is ready.
func nodeAddresses(nodes []*corev1.Node, selector labels.Selector) []ipam.Range {
	var ready, all []ipam.Range
	for _, n := range nodes {
		if n.DeletionTimestamp != nil || selector != nil && !selector.Matches(labels.Set(n.Labels)) {
			continue
		}
		if _, excluded := n.Labels[corev1.LabelNodeExcludeBalancers]; excluded {
			continue
		}
		for _, a := range n.Status.Addresses {
			ip, err := netip.ParseAddr(a.Address)
			if a.Type != corev1.NodeInternalIP || err != nil {
				continue
			}
			r := ipam.Range{From: ip.Unmap(), To: ip.Unmap()}
			all = append(all, r)
			if nodeReady(n) {
				ready = append(ready, r)
			}
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return all
}

func nodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// sortPools puts the older pool first, which wins where two overlap.
func sortPools(pools []*v1alpha1.IPPool) {
	slices.SortFunc(pools, func(a, b *v1alpha1.IPPool) int {
		if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
}

// poolStatus is the status of a pool; problem is what is wrong with it, if anything.
func poolStatus(p *v1alpha1.IPPool, u ipam.Usage, problem error, now metav1.Time) v1alpha1.IPPoolStatus {
	st := v1alpha1.IPPoolStatus{
		ObservedGeneration: p.Generation,
		IPv4:               v1alpha1.Usage{Total: u.Total4, Used: u.Used4},
		IPv6:               v1alpha1.Usage{Total: u.Total6, Used: u.Used6},
		Services:           u.Services,
		Kept:               u.Kept,
	}
	c := metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready",
		ObservedGeneration: p.Generation, LastTransitionTime: now,
	}
	inUse := u.Used4 + u.Used6 + u.Kept
	switch {
	case p.DeletionTimestamp != nil:
		c.Status, c.Reason = metav1.ConditionFalse, "Terminating"
		c.Message = fmt.Sprintf("The pool is being deleted and gives nothing out. It goes when the %d Services that hold its addresses have given them up.", u.Services)
	case problem != nil:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "Invalid", problem.Error()
	case u.Kept > 0:
		c.Reason = "AddressesKept"
		c.Message = fmt.Sprintf("%d of the %d addresses in use are no longer in spec.addresses. They stay with their Services until these give them up.", u.Kept, inUse)
	case u.Total4 > 0 && u.Used4 == u.Total4 && p.Spec.Provider != v1alpha1.ProviderNodeAddress,
		u.Total6 > 0 && u.Used6 == u.Total6 && p.Spec.Provider != v1alpha1.ProviderNodeAddress:
		c.Reason, c.Message = "Exhausted", "All addresses of a family are in use."
	}
	for _, old := range p.Status.Conditions {
		if old.Type == c.Type && old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
	}
	st.Conditions = []metav1.Condition{c}
	return st
}
