// Package v1alpha1 is Fairway's own part of the Kubernetes API: the custom
// resources of group fairway.dev.
//
// It holds their Go types, the CustomResourceDefinitions that teach an API
// server about them (crds/*.yaml, embedded), a typed client, and Install,
// which puts the definitions into a cluster. What a pool's addresses mean is
// decided in internal/lb; who announces them in internal/announce.
//
// zz_generated.deepcopy.go is made by
//
//	go run k8s.io/code-generator/cmd/deepcopy-gen@v0.37.2 --output-file zz_generated.deepcopy.go ./api/v1alpha1
//
// +k8s:deepcopy-gen=package
package v1alpha1
