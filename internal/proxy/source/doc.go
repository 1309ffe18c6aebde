// Package source brings the Services, EndpointSlices, Nodes and ServiceCIDRs of
// a Kubernetes API to any number of node proxies in this process.
//
// In goes a REST config, out come batches of changes in package state's words.
// It keeps one compact copy of each object, whatever the number of
// subscribers, and drops at the door what a proxy does not need: objects are
// decoded straight from the protobuf stream into that copy, one at a time as
// they arrive (a streaming list where the server has it), so that neither a
// list nor a full API object is ever in memory. It lists and watches what
// kube-proxy's own ClusterRole system:node-proxier permits, and writes nothing.
package source
