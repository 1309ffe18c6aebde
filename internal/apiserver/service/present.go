package service

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/utils/ptr"

	"fairway.dev/fairway/internal/apiserver/service/claim"
)

// present completes Services read from etcd that were stored before some of today's fields existed, so that readers and
// updates see them as if stored today. Static defaults cannot do this: they apply to what clients send as well.
func (f families) present(obj runtime.Object) {
	switch o := obj.(type) {
	case *core.Service:
		f.presentOne(o)
	case *core.ServiceList:
		for i := range o.Items {
			f.presentOne(&o.Items[i])
		}
	}
}

func (f families) presentOne(svc *core.Service) {
	s := &svc.Spec
	mirrorClusterIP(svc, nil)
	if !needsClusterIP(svc) {
		s.InternalTrafficPolicy = nil // once set by default, of no meaning here
		return
	}
	if len(s.IPFamilies) > 0 {
		return
	}
	s.IPFamilyPolicy = ptr.To(core.IPFamilyPolicySingleStack)
	switch {
	case isHeadless(svc) && len(s.Selector) == 0:
		s.IPFamilyPolicy = ptr.To(core.IPFamilyPolicyRequireDualStack)
		s.IPFamilies = []core.IPFamily{f[0], otherFamily(f[0])}
	case isHeadless(svc):
		s.IPFamilies = []core.IPFamily{f[0]}
	default:
		for _, ip := range s.ClusterIPs {
			if addr, ok := parseAddr(ip); ok {
				s.IPFamilies = append(s.IPFamilies, claim.FamilyOf(addr))
			}
		}
		if len(s.IPFamilies) > 1 {
			s.IPFamilyPolicy = ptr.To(core.IPFamilyPolicyRequireDualStack)
		}
	}
}
