package lb

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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

func ensurePool(ctx context.Context, client *v1alpha1.Client, spec v1alpha1.IPPoolSpec) error {
	_, err := client.IPPools().Create(ctx, &v1alpha1.IPPool{
		ObjectMeta: metav1.ObjectMeta{Name: DefaultPool}, Spec: spec,
	}, metav1.CreateOptions{FieldManager: fieldManager})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create IPPool %q: %w", DefaultPool, err)
	}
	return nil
}
