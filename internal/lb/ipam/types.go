package ipam

import (
	"fmt"
	"net/netip"

	"k8s.io/apimachinery/pkg/labels"
)

// Pool is a set of addresses and who may have them.
type Pool struct {
	Name   string
	Ranges []Range
	// Priority orders the pools that can serve a Service: higher first, then by
	// name.
	Priority int32
	// AutoAssign pools serve Services that name neither pool nor address.
	AutoAssign bool
	// AvoidBuggy keeps addresses ending in .0 and .255 from being given out unasked.
	AvoidBuggy bool
	// Common addresses go to any number of Services whose ports do not clash,
	// and are lost to them when they leave the pool: they are nodes' own.
	Common bool
	// Closed pools give out nothing new.
	Closed bool
	// Namespaces and Services select by the labels of a Service's namespace and
	// its own; nil selects all.
	Namespaces, Services labels.Selector
}

func (p *Pool) selects(r *Request) bool {
	return (p.Namespaces == nil || p.Namespaces.Matches(r.NamespaceLabels)) &&
		(p.Services == nil || p.Services.Matches(r.Labels))
}

// Port is a port that a Service answers on.
type Port struct {
	Protocol string // "TCP", "UDP" or "SCTP"
	Number   uint16
}

func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Number, p.Protocol) }

// Request is what a Service asks for.
type Request struct {
	// Key names the Service: namespace/name.
	Key                     string
	NamespaceLabels, Labels labels.Set
	// Families are the Service's, in order.
	Families []Family
	// RequireAll serves a Service only with an address of each family;
	// otherwise it gets those there are, and the rest when it can be had.
	RequireAll bool
	// Addresses are those it asks for by name. Families among Families that
	// they leave out are served from pools.
	Addresses []netip.Addr
	// Pools are those it asks for by name; the first that can serve does.
	Pools []string
	// ShareKey, if not empty, lets Services with the same one share an address.
	ShareKey string
	Ports    []Port
	// Backends tells apart the sets of backends of Services whose traffic goes
	// only to nodes that have one; empty for all others. Services that share an
	// address must be alike in this.
	Backends string
}

// Claim is a Service with addresses that it has from somebody else: another
// load balancer, or a person who wrote its status.
type Claim struct {
	Request Request
	Addrs   []netip.Addr
}

// Assigned is an address that a Service holds.
type Assigned struct {
	Addr netip.Addr
	// Pool has the address, or had it last; it may be gone.
	Pool string
	// Origin is the pool it was given out of. A Service that asks for that pool
	// keeps the address even if it has moved to another pool since.
	Origin string
	// Kept says that the pool no longer has the address.
	Kept bool
}

// Reasons why a Service lacks an address.
const (
	ReasonNoPool       = "NoPool"            // no pool has such addresses for this Service
	ReasonNoSuchPool   = "NoSuchPool"        // a pool asked for by name does not exist
	ReasonNotAllowed   = "PoolNotForService" // a pool asked for does not select this Service
	ReasonExhausted    = "PoolExhausted"     // all addresses are in use
	ReasonInUse        = "AddressInUse"      // the address asked for has another holder
	ReasonPortClash    = "PortClash"         // the address can be shared, but not this port
	ReasonNotInPool    = "AddressNotInPool"  // the address asked for is in no pool
	ReasonWrongFamily  = "WrongFamily"       // the address asked for is not of the Service's families
	ReasonPolicyDiffer = "PolicyDiffers"     // sharing needs the same traffic policy and, with Local, the same selector
)

// Reasons are all of them.
var Reasons = []string{
	ReasonNoPool, ReasonNoSuchPool, ReasonNotAllowed, ReasonExhausted, ReasonInUse,
	ReasonPortClash, ReasonNotInPool, ReasonWrongFamily, ReasonPolicyDiffer,
}

// Pending says why a Service lacks an address.
type Pending struct {
	Reason  string
	Message string
	// Partial is set if the Service has all that it must have (an address of
	// one of two preferred families).
	Partial bool
}

func (p *Pending) Error() string { return p.Reason + ": " + p.Message }

// Outcome is what a Service has.
type Outcome struct {
	// Addresses are in the order of the request.
	Addresses []Assigned
	// Pending is nil if the Service has all that it asks for.
	Pending *Pending
}

// Usage counts a pool's addresses.
type Usage struct {
	Total4, Used4, Total6, Used6 int64
	// Services hold an address of the pool.
	Services int64
	// Kept addresses are in use though the pool no longer has them.
	Kept int64
}
