package dns_test

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/dns"
	"fairway.dev/fairway/internal/testenv/apitest"
)

// resources of the kinds that the manifests use.
var resources = map[string]schema.GroupVersionResource{
	"ServiceAccount":      {Version: "v1", Resource: "serviceaccounts"},
	"Service":             {Version: "v1", Resource: "services"},
	"Deployment":          {Group: "apps", Version: "v1", Resource: "deployments"},
	"DaemonSet":           {Group: "apps", Version: "v1", Resource: "daemonsets"},
	"PodDisruptionBudget": {Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"},
	"ClusterRole":         {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"},
	"ClusterRoleBinding":  {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"},
}

// The manifests are what an API server takes, and the rights they give are
// enough.
func TestManifests(t *testing.T) {
	s := apitest.Start(t)
	ctx := context.Background()
	client, err := dynamic.NewForConfig(apitest.Config(t, s, apiserver.Admin()))
	if err != nil {
		t.Fatal(err)
	}
	apply := func(file string, remove bool) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join("../../deploy/dns", file))
		if err != nil {
			t.Fatal(err)
		}
		for doc := range bytes.SplitSeq(b, []byte("\n---\n")) {
			var u unstructured.Unstructured
			if err := yaml.UnmarshalStrict(doc, &u.Object); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			gvr, ok := resources[u.GetKind()]
			if !ok {
				t.Fatalf("%s: kind %q is not known to this test", file, u.GetKind())
			}
			r := client.Resource(gvr).Namespace(u.GetNamespace())
			if remove {
				err = r.Delete(ctx, u.GetName(), metav1.DeleteOptions{})
			} else {
				_, err = r.Create(ctx, &u, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
			}
			if err != nil {
				t.Errorf("%s: %s %s: %v", file, u.GetKind(), u.GetName(), err)
			}
		}
	}
	apply("rbac.yaml", false)
	apply("deployment.yaml", false)
	apply("deployment.yaml", true)
	apply("daemonset.yaml", false)

	config := apitest.Config(t, s, apiserver.Admin())
	config.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:kube-system:fairway-dns",
		Groups: []string{"system:serviceaccounts", "system:authenticated"}}
	as, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	run(t, dns.Options{Client: as, NoForward: true, Addrs: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}})
}
