// Package proxy makes packets to a Service's address reach one of its ready
// endpoints, on one node.
//
// In goes a Source of changes (package source), out goes a table of frontends
// (package state) that a Programmer (package nft) makes the kernel hold. The
// loop here joins them and decides when: a sync starts as soon as something
// has changed, and what arrives meanwhile rides in the next one. It also feeds
// what hangs on the table: health checks, metrics, and the connections that
// must not outlive their endpoint. It writes nothing to the API.
package proxy
