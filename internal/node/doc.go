// Package node is the nodes of the standalone life: many simulated ones in one
// process, or the machine itself as the only one.
//
// In go ranges, a way to the API for each node and what is to run on every
// node; out come nodes that Pods run on. New makes the network, so that the API
// can listen on it; Run registers the nodes, runs their Pods and serves logs,
// exec, attach and port-forward, until its context ends. Everything outlives
// the process: the next one takes it over, and Cleanup takes it away.
//
//	network     namespaces, addresses, routes
//	runtime     runs containers: process, cri
//	lifecycle   Pods, one worker each
//	volumes, podspec, probe, cgroup   what lifecycle needs
//	agent       the Node object and its lease
//	server      the node's HTTPS server
//
// It reaches the API through client-go alone. That a node is to be off, or its
// cable cut, is an annotation of its Node (AnnotationPower), which this package
// watches as the machine's owner would, not as the node.
package node
