// Package apiserver is Fairway's Kubernetes API: Kubernetes' own API server,
// put together from its libraries over an etcd in the same process.
//
// In go Options: a data directory, addresses to listen on, Service ranges. Out
// comes a Server whose /readyz is ok, and from it client configurations, one
// identity each. Services have a registry of our own (package service); every
// other resource is upstream's, listed in resources.go. Nothing here
// runs controllers of workloads, touches a network but to listen, or is known to the other
// parts: they are clients like any other.
package apiserver
