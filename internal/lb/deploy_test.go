package lb_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"fairway.dev/fairway/api/v1alpha1"
	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/testenv/apitest"
)

// manifest puts the service accounts and the rights of deploy/lb/lb.yaml into
// the cluster.
func (w *world) manifest() {
	w.t.Helper()
	client, err := dynamic.NewForConfig(apitest.Config(w.t, w.server, apiserver.Admin()))
	if err != nil {
		w.t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join("..", "..", "deploy", "lb", "lb.yaml"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, doc := range strings.Split(string(data), "\n---\n") {
		var o unstructured.Unstructured
		if err := yaml.UnmarshalStrict([]byte(doc), &o.Object); err != nil {
			w.t.Fatal(err)
		}
		gvk := o.GroupVersionKind()
		if gvk.Group == "apps" {
			continue // what runs is run by the test
		}
		gvr := schema.GroupVersionResource{Group: gvk.Group, Version: gvk.Version, Resource: strings.ToLower(gvk.Kind) + "s"}
		var resource dynamic.ResourceInterface = client.Resource(gvr)
		if ns := o.GetNamespace(); ns != "" {
			resource = client.Resource(gvr).Namespace(ns)
		}
		if _, err := resource.Apply(w.t.Context(), o.GetName(), &o, metav1.ApplyOptions{FieldManager: "test"}); err != nil {
			w.t.Fatalf("%s %s: %v", gvk.Kind, o.GetName(), err)
		}
	}
}

// as is the configuration of a service account, with its rights and no others.
func (w *world) as(account string) *rest.Config {
	c := apitest.Config(w.t, w.server, apiserver.Admin())
	c.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:kube-system:" + account,
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"},
	}
	return c
}

// TestManifests holds deploy/ against the program: the same definitions, and
// files that can be read.
func TestManifests(t *testing.T) {
	root := filepath.Join("..", "..", "deploy", "lb")
	files, err := v1alpha1.CRDs.ReadDir("crds")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		want, err := v1alpha1.CRDs.ReadFile("crds/" + f.Name())
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(root, "crds", f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("deploy/lb/crds/%s differs from api/v1alpha1/crds: copy it", f.Name())
		}
	}
	for _, name := range []string{"lb.yaml", "pool.yaml"} {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range strings.Split(string(data), "\n---\n") {
			var o unstructured.Unstructured
			if err := yaml.UnmarshalStrict([]byte(doc), &o.Object); err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if o.GetKind() == "" || o.GetName() == "" {
				t.Errorf("%s: an object without kind or name:\n%s", name, doc)
			}
		}
	}
}
