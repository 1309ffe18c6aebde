package lb

import (
	"context"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairway.dev/fairway/api/v1alpha1"
)

// DefaultPool is the name of the pool that EnsureDefaultPool makes.
const DefaultPool = "default"

// EnsureDefaultPool makes a pool named "default" of these addresses (prefixes,
// ranges, addresses) if there is no pool of that name; one that is there is
// left as it is, for people may have changed it.
func EnsureDefaultPool(ctx context.Context, client *v1alpha1.Client, addresses []string) error {
	return ensurePool(ctx, client, v1alpha1.IPPoolSpec{Addresses: addresses})
}

// EnsureNodeAddressPool is EnsureDefaultPool with the nodes' own addresses:
// Services get the address of a node where their ports are free.
func EnsureNodeAddressPool(ctx context.Context, client *v1alpha1.Client) error {
	return ensurePool(ctx, client, v1alpha1.IPPoolSpec{
		Provider: v1alpha1.ProviderNodeAddress,
		Announce: v1alpha1.AnnounceSpec{Mode: v1alpha1.AnnounceNone},
	})
}

// ensurePool makes the pool by server-side apply, which makes what is not
// there. A create would wait: an API server puts off every create of a kind
// whose definition is new by two seconds, so that other servers learn of it.
func ensurePool(ctx context.Context, client *v1alpha1.Client, spec v1alpha1.IPPoolSpec) error {
	_, err := client.IPPools().Get(ctx, DefaultPool, metav1.GetOptions{})
	if err == nil {
		return nil
	}
	if !apierrors.IsNotFound(err) {
		return fmt.Errorf("look for IPPool %q: %w", DefaultPool, err)
	}
	body, err := json.Marshal(map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(), "kind": "IPPool",
		"metadata": map[string]any{"name": DefaultPool}, "spec": spec,
	})
	if err != nil {
		return err
	}
	_, err = client.IPPools().Patch(ctx, DefaultPool, types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: fieldManager})
	// A conflict is somebody else who made it in between.
	if err != nil && !apierrors.IsConflict(err) {
		return fmt.Errorf("create IPPool %q: %w", DefaultPool, err)
	}
	return nil
}
