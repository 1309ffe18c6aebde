// Package endpoints keeps the addresses behind every Service. In go Services,
// Pods, Nodes and hand-written Endpoints, from shared informers; out come
// EndpointSlices (computed by k8s.io/endpointslice, upstream's own reconciler),
// v1 Endpoints for those who still read them, and EndpointSlices that mirror
// hand-written Endpoints. It writes those two kinds and Events, and nothing else.
//
// It does what upstream's endpointslice, endpoints and endpointslicemirroring
// controllers do, under their names, so that either may take over from the
// other. What differs is the way from a Pod to its Services and back:
//
//   - by index: a Pod's change costs what it touches, not the number of
//     Services or Pods in its namespace (index.go);
//   - at once: no batching delay, and where upstream backs off for a second
//     because its cache has not seen its own last write, this waits for that
//     write to arrive (freshness.go);
//   - in order: Pods' changes go before the creation of new Services and the
//     first pass after a start, and slices, which carry traffic, before v1
//     Endpoints, which no longer do (order.go);
//   - a Node's arrival, and a change of its zone, reaches the endpoints on it.
package endpoints
