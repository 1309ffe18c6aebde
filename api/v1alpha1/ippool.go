package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Names that Fairway's load balancer reads and writes on Services and Nodes.
const (
	// LoadBalancerClass is the spec.loadBalancerClass of Services that are
	// Fairway's for certain, whatever other load balancer the cluster has.
	LoadBalancerClass = "fairway.dev/lb"
	// Finalizer holds a Service until its addresses are given back. It also
	// marks the Services whose addresses Fairway announces.
	Finalizer = "fairway.dev/lb"

	// AnnotationAddresses asks for certain addresses: a comma-separated list,
	// any number of each family that the Service has.
	AnnotationAddresses = "fairway.dev/addresses"
	// AnnotationPool asks for addresses from certain pools: a comma-separated
	// list of names, the first that can serve is used.
	AnnotationPool = "fairway.dev/pool"
	// AnnotationShareKey lets Services that carry the same value share an
	// address, as long as their ports do not clash.
	AnnotationShareKey = "fairway.dev/share-key"
	// MetalLB's annotations ask for the same, on Services that lack ours. Each
	// goes by two prefixes.
	MetalLBPrefix    = "metallb.io/"
	MetalLBOldPrefix = "metallb.universe.tf/"
	MetalLBAddresses = "loadBalancerIPs"
	MetalLBPool      = "address-pool"
	MetalLBSharedIP  = "allow-shared-ip"

	// AnnotationAnnounce overrides the pool's announcement: "L2" or "None".
	AnnotationAnnounce = "fairway.dev/announce"
	// AnnotationAllocatedFrom is written by Fairway: the pools that the
	// Service's addresses come from, in the order of status.loadBalancer.ingress.
	AnnotationAllocatedFrom = "fairway.dev/allocated-from"

	// ConditionAddress is the condition in a Service's status that says whether
	// it has the addresses it asks for and, if not, why.
	ConditionAddress = "fairway.dev/Address"
	// ConditionReady is the condition in an IPPool's status that says whether
	// addresses are given out of it and, if not, why.
	ConditionReady = "Ready"
)

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// IPPool is a set of addresses that Services of type LoadBalancer get their
// external address from. It is cluster-scoped.
type IPPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   IPPoolSpec   `json:"spec"`
	Status IPPoolStatus `json:"status,omitempty"`
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// IPPoolList is a list of IPPools.
type IPPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []IPPool `json:"items"`
}

// Provider is where a pool's addresses come from.
type Provider string

const (
	// ProviderRanges gives out the addresses that spec.addresses lists, each to
	// one Service (or to several that share it by key).
	ProviderRanges Provider = "Ranges"
	// ProviderNodeAddress gives out the nodes' own addresses, each to any
	// number of Services whose ports are free there. Nothing is announced: the
	// network knows these addresses already.
	ProviderNodeAddress Provider = "NodeAddress"
)

// AnnounceMode is how the network learns where an address lives.
type AnnounceMode string

const (
	// AnnounceL2 has one node answer for the address: by ARP (IPv4) and by
	// neighbour discovery (IPv6).
	AnnounceL2 AnnounceMode = "L2"
	// AnnounceNone leaves it to somebody else to route the address to a node.
	AnnounceNone AnnounceMode = "None"
)

// IPPoolSpec is what a pool should be.
type IPPoolSpec struct {
	// Provider is ProviderRanges if empty.
	Provider Provider `json:"provider,omitempty"`
	// Addresses are prefixes ("192.0.2.0/24"), ranges ("192.0.2.10-192.0.2.20",
	// both ends included) and single addresses, of both families in any order.
	Addresses []string `json:"addresses,omitempty"`
	// AutoAssign says whether Services that name neither a pool nor an address
	// get one from here. True if nil.
	AutoAssign *bool `json:"autoAssign,omitempty"`
	// Priority orders pools that can serve the same Service: higher first, then
	// by name.
	Priority int32 `json:"priority,omitempty"`
	// AvoidBuggyIPs keeps IPv4 addresses that end in .0 or .255 from being given
	// out unasked, for the sake of clients that take them for network and
	// broadcast addresses.
	AvoidBuggyIPs bool `json:"avoidBuggyIPs,omitempty"`
	// NamespaceSelector restricts the pool to Services in namespaces with these
	// labels. All if nil.
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
	// ServiceSelector restricts the pool to Services with these labels. All if nil.
	ServiceSelector *metav1.LabelSelector `json:"serviceSelector,omitempty"`
	// Announce says how, where and by which nodes addresses are announced.
	Announce AnnounceSpec `json:"announce,omitempty"`
}

// AnnounceSpec is how the addresses of a pool are announced.
type AnnounceSpec struct {
	// Mode is AnnounceL2 if empty.
	Mode AnnounceMode `json:"mode,omitempty"`
	// Interfaces are name patterns ("eth*", path.Match syntax) of the links that
	// an address is announced on. If empty: the links on whose subnet the
	// address is, or else those that carry an address of the node.
	Interfaces []string `json:"interfaces,omitempty"`
	// NodeSelector restricts which nodes announce. With NodeAddress it restricts
	// whose addresses are given out. All if nil.
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	// From says node by node where an address is announced: by the nodes, of
	// those that NodeSelector selects, that one of them selects, and on the links
	// of all that select the node. If empty: by all, on Interfaces.
	From []AnnounceFrom `json:"from,omitempty"`
}

// AnnounceFrom are nodes, and links that they announce an address on.
type AnnounceFrom struct {
	// NodeSelector selects nodes by their labels. All if nil.
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	// Interfaces are name patterns, as in AnnounceSpec. If empty: that one's.
	Interfaces []string `json:"interfaces,omitempty"`
}

// IPPoolStatus is what a pool is.
type IPPoolStatus struct {
	// ObservedGeneration is the generation of the spec that the rest is about.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// IPv4 and IPv6 count the pool's addresses.
	IPv4 Usage `json:"ipv4"`
	IPv6 Usage `json:"ipv6"`
	// Services is how many Services have an address of this pool.
	Services int64 `json:"services"`
	// Kept is how many addresses are in use that the spec no longer lists: they
	// stay with their Services until these give them up.
	Kept int64 `json:"kept"`
	// Conditions are Ready.
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Usage counts addresses of one family. Numbers beyond 2^63-1 are given as
// 2^63-1.
type Usage struct {
	Total int64 `json:"total"`
	Used  int64 `json:"used"`
}
