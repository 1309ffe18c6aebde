package service

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/utils/ptr"

	"fairway.dev/fairway/internal/apiserver/service/claim"
)

// families are the IP families that the cluster's Services can have, the default one first: one or two.
type families []core.IPFamily

var (
	policyPath     = field.NewPath("spec", "ipFamilyPolicy")
	familiesPath   = field.NewPath("spec", "ipFamilies")
	clusterIPsPath = field.NewPath("spec", "clusterIPs")
)

// settle makes ipFamilyPolicy, ipFamilies and clusterIPs of a Service agree, filling in what follows from the rest.
// Afterwards ipFamilies names a family for each address that the Service is to have; addresses still missing from
// clusterIPs are to be claimed. old is the stored object, nil on create.
//
// A Service never changes between one and two families unless ipFamilyPolicy, ipFamilies or clusterIPs say so: not
// because the cluster got or lost a family.
func (f families) settle(svc, old *core.Service) field.ErrorList {
	s := &svc.Spec
	if !needsClusterIP(svc) || keepsPreference(svc, old) {
		return nil
	}
	if s.IPFamilyPolicy == nil {
		s.IPFamilyPolicy = ptr.To(defaultPolicy(svc, old))
	}
	// What follows may rely on fields that are well-formed each by itself.
	if errs := validation.ValidateServiceClusterIPsRelatedFields(svc, old); len(errs) > 0 {
		return errs
	}
	var errs field.ErrorList
	if old != nil {
		errs = append(errs, shrink(svc, old)...)
	}
	if *s.IPFamilyPolicy == core.IPFamilyPolicySingleStack {
		if len(s.ClusterIPs) == 2 {
			errs = append(errs, field.Invalid(policyPath, s.IPFamilyPolicy, "must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified"))
		}
		if len(s.IPFamilies) == 2 {
			errs = append(errs, field.Invalid(policyPath, s.IPFamilyPolicy, "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"))
		}
	}
	errs = append(errs, f.infer(svc)...)
	if len(errs) > 0 {
		return errs
	}

	if isHeadless(svc) && len(s.Selector) == 0 {
		// Whoever writes its endpoints knows their families, whatever those of the cluster.
		f.complete(svc, true)
		return nil
	}
	if *s.IPFamilyPolicy == core.IPFamilyPolicyRequireDualStack && len(f) < 2 {
		errs = append(errs, field.Invalid(policyPath, s.IPFamilyPolicy, "this cluster is not configured for dual-stack services"))
	}
	for i, family := range s.IPFamilies {
		if !slices.Contains(f, family) {
			errs = append(errs, field.Invalid(familiesPath.Index(i), family, "not configured on this cluster"))
		}
	}
	if len(errs) == 0 {
		f.complete(svc, len(f) == 2)
	}
	return errs
}

// keepsPreference: nothing about families changed in a Service that prefers two. It stays with what it got when it was made.
func keepsPreference(svc, old *core.Service) bool {
	prefers := func(s *core.Service, unset bool) bool {
		if s.Spec.IPFamilyPolicy == nil {
			return unset
		}
		return *s.Spec.IPFamilyPolicy == core.IPFamilyPolicyPreferDualStack
	}
	return old != nil && svc.Spec.Type == old.Spec.Type && prefers(svc, false) && prefers(old, true) &&
		slices.Equal(svc.Spec.ClusterIPs, old.Spec.ClusterIPs) && slices.Equal(svc.Spec.IPFamilies, old.Spec.IPFamilies)
}

// defaultPolicy is the policy of a Service that names none: the one it had, or single-stack. Headless Services without a
// selector get both families, since nothing is known of their endpoints.
func defaultPolicy(svc, old *core.Service) core.IPFamilyPolicy {
	switch {
	case old != nil && old.Spec.IPFamilyPolicy != nil:
		return *old.Spec.IPFamilyPolicy
	case isHeadless(svc) && len(svc.Spec.Selector) == 0:
		return core.IPFamilyPolicyRequireDualStack
	}
	return core.IPFamilyPolicySingleStack
}

// shrink drops the second family of a Service whose policy became single-stack; to drop it without saying so is an error.
func shrink(svc, old *core.Service) field.ErrorList {
	s, was := &svc.Spec, &old.Spec
	if *s.IPFamilyPolicy == core.IPFamilyPolicySingleStack {
		if slices.Equal(s.ClusterIPs, was.ClusterIPs) && len(s.ClusterIPs) > 1 {
			s.ClusterIPs = s.ClusterIPs[:1]
		}
		if slices.Equal(s.IPFamilies, was.IPFamilies) && len(s.IPFamilies) > 1 {
			s.IPFamilies = s.IPFamilies[:1]
		}
		return nil
	}
	var errs field.ErrorList
	if n := len(s.ClusterIPs); n > 0 && n < len(was.ClusterIPs) {
		errs = append(errs, field.Invalid(policyPath, s.IPFamilyPolicy, "must be 'SingleStack' to release the secondary cluster IP"))
	}
	if n := len(s.IPFamilies); n > 0 && n < len(was.IPFamilies) {
		errs = append(errs, field.Invalid(policyPath, s.IPFamilyPolicy, "must be 'SingleStack' to release the secondary IP family"))
	}
	return errs
}

// infer appends to ipFamilies the family of each address that has none there.
func (f families) infer(svc *core.Service) field.ErrorList {
	s := &svc.Spec
	if isHeadless(svc) {
		return nil
	}
	for i := len(s.IPFamilies); i < len(s.ClusterIPs); i++ {
		addr, _ := parseAddr(s.ClusterIPs[i]) // well-formed: validated
		family := claim.FamilyOf(addr)
		if !slices.Contains(f, family) {
			return field.ErrorList{field.Invalid(clusterIPsPath.Index(i), s.ClusterIPs, fmt.Sprintf("%s is not configured on this cluster", family))}
		}
		s.IPFamilies = append(slices.Clip(s.IPFamilies), family)
	}
	return nil
}

// complete gives a Service without families the default one, and one that wants two the other as well, if two can be had.
func (f families) complete(svc *core.Service, two bool) {
	s := &svc.Spec
	if len(s.IPFamilies) == 0 {
		s.IPFamilies = []core.IPFamily{f[0]}
	}
	if two && len(s.IPFamilies) == 1 && *s.IPFamilyPolicy != core.IPFamilyPolicySingleStack {
		s.IPFamilies = append(slices.Clip(s.IPFamilies), otherFamily(s.IPFamilies[0]))
	}
}

func otherFamily(f core.IPFamily) core.IPFamily {
	if f == core.IPv4Protocol {
		return core.IPv6Protocol
	}
	return core.IPv4Protocol
}
