package lb

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"fairway.dev/fairway/api/v1alpha1"
	"fairway.dev/fairway/internal/lb/ipam"
)

// Reasons of the condition ConditionAddress beside those of package ipam.
const (
	reasonAllocated = "Allocated"
	reasonKept      = "Kept"
	reasonInvalid   = "InvalidRequest"
)

// condition is what a Service's status says about what it has.
func condition(svc *corev1.Service, o ipam.Outcome) metav1.Condition {
	c := metav1.Condition{
		Type: v1alpha1.ConditionAddress, Status: metav1.ConditionTrue, Reason: reasonAllocated,
		ObservedGeneration: svc.Generation, LastTransitionTime: metav1.NewTime(time.Now().Truncate(time.Second)),
	}
	if i := slices.IndexFunc(o.Addresses, func(a ipam.Assigned) bool { return a.Kept }); i >= 0 {
		a := o.Addresses[i]
		c.Reason = reasonKept
		c.Message = fmt.Sprintf("Address %s is no longer in pool %q. It stays with this Service until the Service gives it up.", a.Addr, a.Pool)
	}
	if p := o.Pending; p != nil {
		c.Reason, c.Message = p.Reason, p.Message
		if !p.Partial {
			c.Status = metav1.ConditionFalse
		}
		switch {
		case len(o.Addresses) > 0 && !p.Partial:
			c.Message += "; until then it keeps the addresses it has"
		case len(o.Addresses) == 0 && foreign(svc):
			c.Message += "; the address in its status is another load balancer's, and in no pool here"
		}
	}
	if old := meta.FindStatusCondition(svc.Status.Conditions, c.Type); old != nil && old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	return c
}

// ingressOf is a Service's status.loadBalancer.ingress.
func ingressOf(o ipam.Outcome) []corev1.LoadBalancerIngress {
	var in []corev1.LoadBalancerIngress
	for _, a := range o.Addresses {
		mode := corev1.LoadBalancerIPModeVIP
		in = append(in, corev1.LoadBalancerIngress{IP: a.Addr.String(), IPMode: &mode})
	}
	return in
}

func originsOf(o ipam.Outcome) string {
	var names []string
	for _, a := range o.Addresses {
		names = append(names, a.Origin)
	}
	return strings.Join(names, ",")
}

// assign writes what a Service has: first the finalizer and where the addresses
// come from, so that no address is ever out without them, then the status. It
// returns the resource version that it wrote last, or "" if nothing had to be
// written. A Service that has changed meanwhile is a conflict, and is to be
// looked at again.
func assign(ctx context.Context, client kubernetes.Interface, svc *corev1.Service, o ipam.Outcome) (wrote string, err error) {
	services := client.CoreV1().Services(svc.Namespace)
	origins := originsOf(o)
	finalizers := svc.Finalizers
	if len(o.Addresses) > 0 && !slices.Contains(finalizers, v1alpha1.Finalizer) {
		finalizers = append(slices.Clone(finalizers), v1alpha1.Finalizer)
	}
	if len(finalizers) != len(svc.Finalizers) || svc.Annotations[v1alpha1.AnnotationAllocatedFrom] != origins {
		updated, err := services.Patch(ctx, svc.Name, types.MergePatchType, metadataPatch(svc, finalizers, origins), metav1.PatchOptions{FieldManager: fieldManager})
		if err != nil {
			return wrote, fmt.Errorf("write finalizer: %w", err)
		}
		svc, wrote = updated, updated.ResourceVersion
	}
	c := condition(svc, o)
	in := ingressOf(o)
	if len(in) == 0 && foreign(svc) {
		in = svc.Status.LoadBalancer.Ingress // it may well work, until it gets another here
	}
	old := meta.FindStatusCondition(svc.Status.Conditions, c.Type)
	same := old != nil && old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message
	if same && apiequality.Semantic.DeepEqual(svc.Status.LoadBalancer.Ingress, in) {
		return wrote, nil
	}
	return writeStatus(ctx, client, svc, in, &c)
}

// unassign takes away all that assign wrote: the addresses first, so that
// nobody else has them before the world knows, then the finalizer.
func unassign(ctx context.Context, client kubernetes.Interface, svc *corev1.Service) error {
	ours := meta.FindStatusCondition(svc.Status.Conditions, v1alpha1.ConditionAddress) != nil
	if svc.DeletionTimestamp == nil && ours {
		updated, err := clearStatus(ctx, client, svc)
		if err != nil {
			return err
		}
		svc = updated
	}
	_, noted := svc.Annotations[v1alpha1.AnnotationAllocatedFrom]
	if !slices.Contains(svc.Finalizers, v1alpha1.Finalizer) && !noted {
		return nil
	}
	return dropFinalizer(ctx, client, svc)
}

// dropFinalizer takes away the finalizer and where the addresses come from.
func dropFinalizer(ctx context.Context, client kubernetes.Interface, svc *corev1.Service) error {
	finalizers := slices.DeleteFunc(slices.Clone(svc.Finalizers), func(f string) bool { return f == v1alpha1.Finalizer })
	_, err := client.CoreV1().Services(svc.Namespace).Patch(ctx, svc.Name, types.MergePatchType,
		metadataPatch(svc, finalizers, ""), metav1.PatchOptions{FieldManager: fieldManager})
	if err != nil {
		return fmt.Errorf("take the finalizer away: %w", err)
	}
	return nil
}

func metadataPatch(svc *corev1.Service, finalizers []string, origins string) []byte {
	m := map[string]any{"resourceVersion": svc.ResourceVersion}
	if !slices.Equal(finalizers, svc.Finalizers) {
		m["finalizers"] = finalizers
	}
	m["annotations"] = map[string]any{v1alpha1.AnnotationAllocatedFrom: nil}
	if origins != "" {
		m["annotations"] = map[string]any{v1alpha1.AnnotationAllocatedFrom: origins}
	}
	return encode(map[string]any{"metadata": m})
}

func writeStatus(ctx context.Context, client kubernetes.Interface, svc *corev1.Service, in []corev1.LoadBalancerIngress, c *metav1.Condition) (string, error) {
	updated, err := patchStatus(ctx, client, svc, map[string]any{
		"loadBalancer": map[string]any{"ingress": in},
		"conditions":   []any{c},
	})
	if err != nil {
		return "", fmt.Errorf("write status: %w", err)
	}
	return updated.ResourceVersion, nil
}

func clearStatus(ctx context.Context, client kubernetes.Interface, svc *corev1.Service) (*corev1.Service, error) {
	updated, err := patchStatus(ctx, client, svc, map[string]any{
		"loadBalancer": map[string]any{"ingress": nil},
		"conditions":   []any{map[string]any{"type": v1alpha1.ConditionAddress, "$patch": "delete"}},
	})
	if err != nil {
		return nil, fmt.Errorf("clear status: %w", err)
	}
	return updated, nil
}

func patchStatus(ctx context.Context, client kubernetes.Interface, svc *corev1.Service, status map[string]any) (*corev1.Service, error) {
	patch := encode(map[string]any{"metadata": map[string]any{"resourceVersion": svc.ResourceVersion}, "status": status})
	return client.CoreV1().Services(svc.Namespace).Patch(ctx, svc.Name, types.StrategicMergePatchType, patch,
		metav1.PatchOptions{FieldManager: fieldManager}, "status")
}

// encode writes a patch; it is made of maps, strings and API types only.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
