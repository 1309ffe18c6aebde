package service

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/names"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	apiservice "k8s.io/kubernetes/pkg/api/service"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// strategy says who may write which part of a Service and what makes it valid. The rules of validity are upstream's. What
// allocates or completes is not here but in REST's hooks, which the generic store runs before these.
type strategy struct {
	rest.DeclarativeValidation
	names.NameGenerator
}

var newStrategy = strategy{rest.DeclarativeValidation{Scheme: legacyscheme.Scheme}, names.SimpleNameGenerator}

func (strategy) NamespaceScoped() bool                         { return true }
func (strategy) AllowCreateOnUpdate(context.Context) bool      { return true }
func (strategy) AllowUnconditionalUpdate(context.Context) bool { return true }
func (strategy) Canonicalize(runtime.Object)                   {}
func (strategy) PrepareForCreate(_ context.Context, o runtime.Object) {
	o.(*core.Service).Status = core.ServiceStatus{}
}

// PrepareForUpdate: the status stays, unless there is no load balancer any more. That its provider may still be taking it
// down need not concern the user.
func (strategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	svc := obj.(*core.Service)
	svc.Status = *old.(*core.Service).Status.DeepCopy()
	if svc.Spec.Type != core.ServiceTypeLoadBalancer {
		svc.Status.LoadBalancer = core.LoadBalancerStatus{}
	}
}

func (strategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	return validation.ValidateServiceCreate(obj.(*core.Service))
}

func (strategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateServiceUpdate(obj.(*core.Service), old.(*core.Service))
}

func (strategy) WarningsOnCreate(_ context.Context, obj runtime.Object) []string {
	return apiservice.GetWarningsForService(obj.(*core.Service), nil)
}

func (strategy) WarningsOnUpdate(_ context.Context, obj, old runtime.Object) []string {
	return apiservice.GetWarningsForService(obj.(*core.Service), old.(*core.Service))
}

// GetResetFields names what a writer of Services does not own, for server-side apply.
func (strategy) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return resetFields("status")
}

// statusStrategy is the strategy of services/status: it writes the status and nothing else.
type statusStrategy struct{ strategy }

func (statusStrategy) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return resetFields("spec")
}

func (statusStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	obj.(*core.Service).Spec = *old.(*core.Service).Spec.DeepCopy()
}

// ValidateUpdate: a status comes with metadata, and some annotations have rules of their own, which upstream checks only
// where the spec is written.
func (statusStrategy) ValidateUpdate(_ context.Context, obj, oldObj runtime.Object) field.ErrorList {
	svc, old := obj.(*core.Service), oldObj.(*core.Service)
	errs := validation.ValidateServiceStatusUpdate(svc, old)
	if len(errs) == 0 && !maps.Equal(svc.Annotations, old.Annotations) {
		for _, err := range validation.ValidateServiceUpdate(svc, old) {
			if strings.HasPrefix(err.Field, "metadata.") {
				errs = append(errs, err)
			}
		}
	}
	return errs
}

func (statusStrategy) WarningsOnUpdate(_ context.Context, obj, _ runtime.Object) []string {
	var warnings []string
	path := field.NewPath("status", "loadBalancer", "ingress")
	for i, ing := range obj.(*core.Service).Status.LoadBalancer.Ingress {
		if ing.IP != "" {
			warnings = append(warnings, utilvalidation.GetWarningsForIP(path.Index(i), ing.IP)...)
		}
	}
	return warnings
}

func resetFields(name string) map[fieldpath.APIVersion]*fieldpath.Set {
	return map[fieldpath.APIVersion]*fieldpath.Set{"v1": fieldpath.NewSet(fieldpath.MakePathOrDie(name))}
}

// attrs returns what Services can be selected by: labels, name, namespace, spec.clusterIP and spec.type.
func attrs(obj runtime.Object) (labels.Set, fields.Set, error) {
	svc, ok := obj.(*core.Service)
	if !ok {
		return nil, nil, fmt.Errorf("not a Service: %T", obj)
	}
	return svc.Labels, generic.MergeFieldsSets(generic.ObjectMetaFieldsSet(&svc.ObjectMeta, true), fields.Set{
		"spec.clusterIP": svc.Spec.ClusterIP,
		"spec.type":      string(svc.Spec.Type),
	}), nil
}

func match(label labels.Selector, field fields.Selector) storage.SelectionPredicate {
	return storage.SelectionPredicate{Label: label, Field: field, GetAttrs: attrs}
}
