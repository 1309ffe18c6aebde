// Package network makes the simulated network of the standalone life: a
// switch, nodes plugged into it, and Pods plugged into nodes.
//
// In go a prefix for names and the CIDRs, out come network namespaces with
// addresses, routes and the way out to the world. It knows no Kubernetes type
// and runs no process. In the machine's own namespace (the one the process is
// in when it calls Open) it makes exactly one link, the routes through it, one
// nftables table and a few sysctls, all named or recorded, and Close or Cleanup
// takes them away again.
//
//	machine ── <prefix> ══ switch (namespace <prefix>-lan, bridge br0)
//	                          ║ eth0           ║ eth0
//	                       <prefix>-node-1   <prefix>-node-2   …
//	                          │ veth, routed
//	                       <prefix>-p-node-1-…   a Pod: eth0
//
// The switch has a namespace of its own so that frames between nodes never
// meet the machine's firewall (with br_netfilter loaded, a bridge in the
// machine's namespace would hand them to it).
package network
