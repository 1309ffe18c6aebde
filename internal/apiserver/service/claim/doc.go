// Package claim hands out the things of which a cluster has only so many: Service addresses and node ports.
//
// A claim is one small key in etcd, named after the thing it claims ("10.96.0.10", "30080") and saying which Service it
// is for. Creating the key is the claim: etcd lets exactly one writer create a key, so two servers on one etcd can
// never hand out the same thing, and no claim waits for another. Nothing is read or rewritten but that one key,
// whatever the number of claims.
//
// What goes in: an owner (a Service), and either the thing it asks for or the wish for any free one. What comes out: the
// thing, or an error that says why not. This package knows neither Service objects nor their rules, writes no other
// key, and decides nothing about when a claim ends: its callers release.
//
// Address claims are networking.k8s.io/v1 IPAddress objects, as every Kubernetes API server makes them; port claims are
// not visible through the API.
package claim
