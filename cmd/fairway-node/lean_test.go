package main

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What stands on every node of a cluster is small and does not carry the
// control plane with it.
var forbidden = []string{
	"k8s.io/kubernetes",
	"k8s.io/apiserver",
	"k8s.io/kube-aggregator",
	"k8s.io/apiextensions-apiserver",
	"k8s.io/controller-manager",
	"go.etcd.io/etcd/server",
	"go.etcd.io/etcd/client",
	"go.etcd.io/bbolt",
}

// maxSize is of the binary, stripped.
const maxSize = 45 << 20

func TestLinksNothingHeavy(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Skipf("go list: %v", err)
	}
	for dep := range strings.Lines(string(out)) {
		for _, f := range forbidden {
			if dep = strings.TrimSpace(dep); dep == f || strings.HasPrefix(dep, f+"/") {
				t.Errorf("fairway-node links %s; what every node runs must not carry it", dep)
			}
		}
	}
}

func TestBinarySize(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binary")
	}
	path := filepath.Join(t.TempDir(), "fairway-node")
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() > maxSize {
		t.Errorf("the stripped binary has %d bytes, more than %d", st.Size(), maxSize)
	}
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if libs, _ := f.ImportedLibraries(); len(libs) > 0 {
		t.Errorf("not static: it needs %v", libs)
	}
	t.Logf("%d bytes stripped", st.Size())
}
