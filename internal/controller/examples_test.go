package controller

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
)

// Every document of every example is taken by the API as it stands, with
// unknown fields refused, first as a trial and then in earnest.
func TestExamplesApply(t *testing.T) {
	files, err := filepath.Glob("../../examples/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d examples, %v", len(files), err)
	}
	c := startCluster(t)
	c.ready("default")
	groups, err := restmapper.GetAPIGroupResources(c.client.Discovery())
	if err != nil {
		t.Fatal(err)
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	client := dynamic.NewForConfigOrDie(c.config)
	apply := func(object *unstructured.Unstructured, trial []string) error {
		mapping, err := mapper.RESTMapping(object.GroupVersionKind().GroupKind(), object.GroupVersionKind().Version)
		if err != nil {
			return err
		}
		data, err := object.MarshalJSON()
		if err != nil {
			return err
		}
		_, err = client.Resource(mapping.Resource).Namespace("default").Patch(t.Context(), object.GetName(), "application/apply-patch+yaml", data,
			metav1.PatchOptions{FieldManager: "example", FieldValidation: metav1.FieldValidationStrict, DryRun: trial})
		return err
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(string(content), "# ") {
				t.Errorf("does not begin by saying what it shows")
			}
			documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), 4096)
			for n := 1; ; n++ {
				object := &unstructured.Unstructured{}
				if err := documents.Decode(object); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatalf("document %d: %v", n, err)
				}
				for _, trial := range [][]string{{metav1.DryRunAll}, nil} {
					if err := apply(object, trial); err != nil {
						t.Errorf("document %d, %s %s (dry run %v): %v", n, object.GetKind(), object.GetName(), trial, err)
					}
				}
			}
		})
	}
}
