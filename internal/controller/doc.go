// Package controller runs the controllers of a cluster in this process:
// upstream's, from one table (table.go), and Fairway's own endpoints
// controller (package endpoints) beside them. In goes access to an API server
// under several identities; out come ReplicaSets, Pods, EndpointSlices,
// deletions and all else that controllers write. It talks to the API alone,
// and neither knows nor cares whose server it is.
//
// They share one set of caches. What only the garbage collector and quotas
// watch is cached as metadata, without its content (informers.go).
package controller
