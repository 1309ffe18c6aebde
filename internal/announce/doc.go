// Package announce tells the network where load-balancer addresses live.
//
// In come Services, EndpointSlices, Nodes and IPPools (Shared: one per
// process) and heartbeats of the other nodes' announcers; out go answers to
// ARP requests and neighbour solicitations on this node's links (Run: one per
// node), and an Announcer object that says what this node announces and why.
//
// Which node answers for an address is decided without a coordinator: every
// node ranks the nodes that are alive and eligible for it by a hash of node and
// address, and the highest does. Who is alive is learnt from heartbeats over
// UDP between the nodes' announcers, not from the API server: failover works,
// and takes about a second and a half, whatever the API server does.
//
// It gives out no addresses and programs no translation: the data plane of
// every node handles a packet for a load-balancer address wherever it arrives.
package announce
