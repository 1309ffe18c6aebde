package lb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"

	"fairway.dev/fairway/api/v1alpha1"
)

// Released counts what Release has changed.
type Released struct{ Services, Pools int }

// Release takes away from Services and pools all that the controller holds them
// by (its finalizer, its annotation, its condition) and leaves Services their
// addresses: for another load balancer to take over, and for them to be deleted
// without this one. It refuses while a controller leads. It needs the rights of the controller
// and to read the Lease.
func Release(ctx context.Context, config *rest.Config, leaseNamespace string) (Released, error) {
	var done Released
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return done, err
	}
	fairway, err := v1alpha1.NewClient(config)
	if err != nil {
		return done, err
	}
	lease, err := client.CoordinationV1().Leases(leaseNamespace).Get(ctx, leaseName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return done, fmt.Errorf("look whether a controller leads: %w", err)
	default:
		s := lease.Spec
		if s.HolderIdentity != nil && *s.HolderIdentity != "" && s.RenewTime != nil && s.LeaseDurationSeconds != nil &&
			time.Since(s.RenewTime.Time) < time.Duration(*s.LeaseDurationSeconds)*time.Second {
			return done, fmt.Errorf("the controller %s leads, and would take everything back: stop all controllers first (kubectl -n %s scale deployment fairway-lb --replicas=0)", *s.HolderIdentity, leaseNamespace)
		}
	}
	list, err := client.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return done, fmt.Errorf("list Services: %w", err)
	}
	var errs []error
	for i := range list.Items {
		changed, err := releaseService(ctx, client, &list.Items[i])
		if err != nil {
			errs = append(errs, fmt.Errorf("service %s/%s: %w", list.Items[i].Namespace, list.Items[i].Name, err))
		}
		if changed {
			done.Services++
		}
	}
	pools, err := fairway.IPPools().List(ctx, metav1.ListOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return done, errors.Join(append(errs, fmt.Errorf("list IPPools: %w", err))...)
	}
	if err == nil {
		for _, p := range pools.Items {
			if !slices.Contains(p.Finalizers, Finalizer) {
				continue
			}
			left := slices.DeleteFunc(slices.Clone(p.Finalizers), func(f string) bool { return f == Finalizer })
			patch := encode(map[string]any{"metadata": map[string]any{"resourceVersion": p.ResourceVersion, "finalizers": left}})
			if _, err := fairway.IPPools().Patch(ctx, p.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}); err != nil {
				errs = append(errs, fmt.Errorf("pool %s: %w", p.Name, err))
				continue
			}
			done.Pools++
		}
	}
	return done, errors.Join(errs...)
}

func releaseService(ctx context.Context, client kubernetes.Interface, svc *corev1.Service) (changed bool, err error) {
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		_, noted := svc.Annotations[v1alpha1.AnnotationAllocatedFrom]
		condition := meta.FindStatusCondition(svc.Status.Conditions, v1alpha1.ConditionAddress)
		if !noted && condition == nil && !slices.Contains(svc.Finalizers, Finalizer) {
			return nil
		}
		if condition != nil {
			updated, err := patchStatus(ctx, client, svc, map[string]any{
				"conditions": []any{map[string]any{"type": v1alpha1.ConditionAddress, "$patch": "delete"}},
			})
			if err != nil {
				return again(ctx, client, svc, err)
			}
			*svc = *updated
		}
		if err := dropFinalizer(ctx, client, svc); err != nil {
			return again(ctx, client, svc, err)
		}
		changed = true
		return nil
	})
	if apierrors.IsNotFound(err) {
		return changed, nil
	}
	return changed, err
}

// again reads a Service anew that has changed meanwhile.
func again(ctx context.Context, client kubernetes.Interface, svc *corev1.Service, err error) error {
	if apierrors.IsConflict(err) {
		now, readErr := client.CoreV1().Services(svc.Namespace).Get(ctx, svc.Name, metav1.GetOptions{})
		if readErr != nil {
			return readErr
		}
		*svc = *now
	}
	return err
}
