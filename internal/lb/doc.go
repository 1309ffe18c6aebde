// Package lb gives Services of type LoadBalancer their addresses.
//
// In come Services, Namespaces, Nodes and IPPools, from watches; out go each
// Service's status.loadBalancer, a condition and events that say why it lacks
// an address, and each pool's usage. What Services hold is decided by package
// ipam; what their statuses say is the only memory there is, so any number of
// controllers may run, one of them elected through a Lease. Making the network
// send packets for these addresses here is package announce's business.
package lb

import "fairway.dev/fairway/api/v1alpha1"

// The annotations and the class that Services are asked by; see v1alpha1.
const (
	Class     = v1alpha1.LoadBalancerClass
	Finalizer = v1alpha1.Finalizer
)
