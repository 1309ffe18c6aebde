package version

import (
	"os"
	"regexp"
	"testing"
)

// The API release that we print is the one that go.mod pins.
func TestKubernetesMatchesModule(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`k8s\.io/kubernetes (v\S+)`).FindSubmatch(mod)
	if m == nil {
		t.Fatal("go.mod does not require k8s.io/kubernetes")
	}
	if got := string(m[1]); got != Kubernetes {
		t.Errorf("Kubernetes = %s, go.mod pins %s", Kubernetes, got)
	}
}
