package apiserver

import (
	"runtime/debug"
	"sync"

	"k8s.io/apimachinery/pkg/version"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/compatibility"
	// Defines Kubernetes' feature gates.
	_ "k8s.io/kubernetes/pkg/features"
)

// gates are the feature gates that differ from upstream's defaults. They are
// one set per process.
var gates = map[string]bool{
	// Servers of different versions on one store pass requests to each other,
	// and for that keep leases of who is there: a write every few seconds for
	// what Fairway has no use for. Several servers of one version do not need it.
	"APIServerIdentity":                   false,
	"UnknownVersionInteroperabilityProxy": false,
	// Clients are on this machine: compressing answers, and a compressor's
	// memory for each watch, buy nothing.
	"APIResponseCompression": false,
	"WatchListCompression":   false,
}

// setGates sets the gates once. It has to come before anything looks at one.
var setGates = sync.OnceValue(func() error {
	return utilfeature.DefaultMutableFeatureGate.SetFromMap(gates)
})

// servedVersion says which Kubernetes this is. Upstream's own idea of it comes
// from flags of its build, which a library does not get.
type servedVersion struct{ compatibility.EffectiveVersion }

// Info returns what /version answers.
func (v servedVersion) Info() *version.Info {
	info := *v.EffectiveVersion.Info()
	info.GitVersion = KubernetesVersion() + "+fairway"
	info.GitCommit, info.BuildDate, info.GitTreeState = "", "1970-01-01T00:00:00Z", "clean"
	return &info
}

// KubernetesVersion is the version of Kubernetes whose API is served, such as "v1.37.2".
func KubernetesVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if d.Path == "k8s.io/kubernetes" {
				return d.Version
			}
		}
	}
	return "v0.0.0"
}
