// Package lb tests `fairway-node lb` as it is deployed: as processes and
// containers on nodes that share a network, with a real API server.
package lb
