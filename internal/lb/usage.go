package lb

import (
	"context"
	"fmt"
	"slices"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairway.dev/fairway/api/v1alpha1"
)

// usageInterval is how often a pool's status is written at most.
const usageInterval = 250 * time.Millisecond

// writeUsage keeps the pools' statuses and finalizers true.
func (c *controller) writeUsage(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.usageDirty:
		}
		for _, p := range c.poolList() {
			if err := c.writePool(ctx, p); err != nil && ctx.Err() == nil {
				if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
					c.logger.Warn("write status of address pool, will try again", "pool", p.Name, "err", err)
				}
				signal(c.usageDirty)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(usageInterval):
		}
	}
}

func (c *controller) writePool(ctx context.Context, p *v1alpha1.IPPool) error {
	c.mu.Lock()
	u, problem := c.alloc.Usage(p.Name), c.problems[p.Name]
	c.mu.Unlock()
	st := poolStatus(p, u, problem, metav1.NewTime(time.Now().Truncate(time.Second)))
	if !apiequality.Semantic.DeepEqual(st, p.Status) {
		patch := encode(map[string]any{
			"metadata": map[string]any{"resourceVersion": p.ResourceVersion},
			"status":   st,
		})
		updated, err := c.fairway.IPPools().Patch(ctx, p.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}, "status")
		if err != nil {
			return fmt.Errorf("status: %w", err)
		}
		p = updated
	}
	// A pool cannot be deleted under its Services: it goes when they have.
	finalizers := slices.Clone(p.Finalizers)
	has := slices.Contains(finalizers, v1alpha1.Finalizer)
	switch inUse := u.Used4+u.Used6+u.Kept > 0; {
	case p.DeletionTimestamp == nil && !has:
		finalizers = append(finalizers, v1alpha1.Finalizer)
	case p.DeletionTimestamp != nil && has && !inUse:
		finalizers = slices.DeleteFunc(finalizers, func(f string) bool { return f == v1alpha1.Finalizer })
	default:
		return nil
	}
	patch := encode(map[string]any{"metadata": map[string]any{"resourceVersion": p.ResourceVersion, "finalizers": finalizers}})
	if _, err := c.fairway.IPPools().Patch(ctx, p.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}); err != nil {
		return fmt.Errorf("finalizer: %w", err)
	}
	return nil
}
