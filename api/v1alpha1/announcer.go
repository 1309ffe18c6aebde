package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// Announcer is what one node announces to the network, and which other nodes
// it hears. It is cluster-scoped, named after the node, and written by that
// node alone; it goes when its Node goes. Nothing is decided by it: nodes
// elect among themselves, and this is how people see the outcome.
type Announcer struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Status AnnouncerStatus `json:"status,omitempty"`
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// AnnouncerList is a list of Announcers.
type AnnouncerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Announcer `json:"items"`
}

// AnnouncerStatus is what a node announces.
type AnnouncerStatus struct {
	// RenewTime is when the node last wrote this. A running node renews it every
	// 30 s at least.
	RenewTime metav1.MicroTime `json:"renewTime,omitempty"`
	// Phase is Joining (listening for the others), Ready, NoLink (it has no link
	// to announce on) or Stopped.
	Phase string `json:"phase,omitempty"`
	// Live are the nodes, this one included, that this node takes for able to
	// announce.
	Live []string `json:"live"`
	// Mute are those of them that it does not hear: their heartbeats are held up
	// somewhere, though the API server has news of them.
	Mute []string `json:"mute"`
	// AddressCount is how many addresses the node announces.
	AddressCount int64 `json:"addressCount"`
	// Addresses are these addresses; at most 5,000 are listed.
	Addresses []AnnouncedAddress `json:"addresses"`
}

// AnnouncedAddress is one address that a node announces.
type AnnouncedAddress struct {
	Address string `json:"address"`
	// Links are the names of the network interfaces it is announced on. Empty:
	// the node is elected, but has no link to announce it on.
	Links []string `json:"links,omitempty"`
	// Since is when the node took it over.
	Since metav1.MicroTime `json:"since"`
	// Reason says why this node.
	Reason string `json:"reason,omitempty"`
}
