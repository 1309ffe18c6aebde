package v1alpha1

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

// CRDs are the CustomResourceDefinitions of this package, one file each.
//
//go:embed crds/*.yaml
var CRDs embed.FS

var crdResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// Install puts the CustomResourceDefinitions into the cluster, or updates
// them, and waits until the server serves them. The server-side apply it uses
// leaves alone what others add to the definitions. It needs the rights to
// create, patch and get customresourcedefinitions.
func Install(ctx context.Context, config *rest.Config) error {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("install custom resource definitions: %w", err)
	}
	crds := client.Resource(crdResource)
	files, err := CRDs.ReadDir("crds")
	if err != nil {
		return err
	}
	var names []string
	for _, f := range files {
		data, err := CRDs.ReadFile("crds/" + f.Name())
		if err != nil {
			return err
		}
		var obj unstructured.Unstructured
		if err := yaml.Unmarshal(data, &obj.Object); err != nil {
			return fmt.Errorf("crds/%s: %w", f.Name(), err)
		}
		body, err := json.Marshal(obj.Object)
		if err != nil {
			return err
		}
		force := true
		_, err = crds.Patch(ctx, obj.GetName(), types.ApplyPatchType, body,
			metav1.PatchOptions{FieldManager: "fairway", Force: &force})
		if err != nil {
			return fmt.Errorf("install custom resource definition %s: %w", obj.GetName(), err)
		}
		names = append(names, obj.GetName())
	}
	for _, name := range names {
		err := wait.PollUntilContextCancel(ctx, 50*time.Millisecond, true, func(ctx context.Context) (bool, error) {
			obj, err := crds.Get(ctx, name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return false, nil
			}
			if err != nil {
				return false, err
			}
			return established(obj), nil
		})
		if err != nil {
			return fmt.Errorf("wait until custom resource definition %s is established: %w", name, err)
		}
	}
	return waitServed(ctx, config)
}

// waitServed waits until lists are answered: a definition is established a
// moment before its paths are.
func waitServed(ctx context.Context, config *rest.Config) error {
	c, err := NewClient(config)
	if err != nil {
		return err
	}
	return wait.PollUntilContextCancel(ctx, 50*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		one := metav1.ListOptions{Limit: 1}
		_, err := c.IPPools().List(ctx, one)
		if err == nil {
			_, err = c.Announcers().List(ctx, one)
		}
		switch {
		case err == nil, apierrors.IsForbidden(err):
			return true, nil
		case apierrors.IsNotFound(err), apierrors.IsServiceUnavailable(err), apierrors.IsTooManyRequests(err):
			return false, nil
		}
		return false, fmt.Errorf("list %s: %w", GroupVersion, err)
	})
}

func established(obj *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(obj.Object, "status", "conditions")
	for _, c := range conditions {
		if m, ok := c.(map[string]any); ok && m["type"] == "Established" {
			return m["status"] == "True"
		}
	}
	return false
}
