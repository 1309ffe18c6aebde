// Package state turns Services and EndpointSlices, as one node sees them, into
// frontends and their backends, keeps the resulting table, and answers every
// changed object with exactly what changed.
//
// It is pure: it imports no netlink and no API client, starts no goroutine and
// reads no clock.
package state

import (
	"net/netip"
	"time"
)

// Protocol is an IP protocol number (IANA "Protocol Numbers").
type Protocol uint8

// The protocols a Service port may have.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// Key is what a packet is matched by: the destination a client addresses.
//
// A node port's Key has the unspecified address of its family (0.0.0.0 or ::);
// it stands for every address of this node that serves node ports.
type Key struct {
	Addr  netip.Addr
	Port  uint16
	Proto Protocol
}

// Backend is an address and port that a frontend may pick. It is of the
// frontend's family.
type Backend struct {
	Addr netip.AddrPort
}

// Masquerade says which clients of a frontend appear to the backend with this
// node's address instead of their own. Whatever it says, a backend that picks
// itself (hairpin) is always masqueraded.
type Masquerade uint8

const (
	// MasqueradeNever keeps every client's address.
	MasqueradeNever Masquerade = iota
	// MasqueradeOffCluster masquerades clients outside the Pod network.
	MasqueradeOffCluster
	// MasqueradeAlways masquerades every client.
	MasqueradeAlways
)

// Empty says what a client gets from a frontend that has no backend.
type Empty uint8

const (
	// Reject answers at once: TCP RST, or ICMP port unreachable.
	Reject Empty = iota
	// Drop stays silent: there are endpoints, but policy Local hides them here.
	Drop
)

// Frontend is an address, protocol and port that a Service answers on, and all
// that decides how.
type Frontend struct {
	Key Key

	// ClusterIP is set on the frontends of a Service's own cluster address.
	// While an address has at least one such frontend, connections to it by a
	// port and protocol that no frontend has are rejected. (Load-balancer
	// addresses and external IPs may be a machine's own and are left alone.)
	ClusterIP bool

	// Backends are in slot order and never contain duplicates. They stay in
	// their slots as far as possible when others come and go: a backend that
	// is replaced leaves its slot to the new one, and one that goes leaves it
	// to the last.
	//
	// This slice and the others here are never modified once handed out, so
	// whoever receives a Frontend may keep them.
	Backends []Backend
	// Masquerade holds for connections to Backends.
	Masquerade Masquerade
	// Empty holds while Backends is empty.
	Empty Empty

	// Inside is set on external frontends (node port, load-balancer address,
	// external IP) under externalTrafficPolicy Local: connections from the Pod
	// network and from this node itself do not obey the policy; they go to
	// InsideBackends, those of the node itself masqueraded. If InsideBackends
	// is empty Empty holds for them too. (Is the Pod network unknown, only the
	// node's own connections are inside.)
	Inside         bool
	InsideBackends []Backend

	// Affinity is how long a client address stays with its backend after its
	// last new connection; zero is no affinity. Whole seconds.
	Affinity time.Duration

	// Restricted limits clients to Sources (loadBalancerSourceRanges); others
	// are dropped, the node's own connections too. The Sources are masked, and
	// may overlap. An empty list lets nobody in.
	Restricted bool
	Sources    []netip.Prefix
}

// Diff is what changed in the table: frontends to be programmed anew or for the
// first time, and those to be removed. A Key is in one of the two, at most
// once. The receiver must not modify what it is given, but may keep it.
type Diff struct {
	Set    []*Frontend
	Remove []Key
}
